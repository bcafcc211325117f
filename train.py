"""Train the illumination network on pairs of underexposed and well exposed photos.

    python train.py --dataset_dir path/to/fivek --exp_name fivek
    python train.py --train_pairs a/train.csv,b/train.csv --valid_pairs b/valid.csv --exp_name mine
    python train.py --good_photos my_photos --exp_name mine   # no pairs: inputs are simulated from good photos
    python train.py ... --resume auto                         # go on where a killed run stopped, or begin
    torchrun --nproc_per_node=8 train.py ...                  # the same global batch, shared

Writes to checkpoints/<exp_name>/: options.json, train_pairs.csv, valid_pairs.csv, log.csv and curves.png (redrawn each
epoch), last.pth (to resume), best.pth (best validation PSNR), epoch_<e>_psnr_<p>.pth, 4 x 4 picture sheets of I, R and
S of training batches in train_phase/ and of the same validation photos every epoch in valid_phase/.

The defaults are the predecessor's, but validation scores the untouched photos at their own size, each once.
"""

import os

# torch's threads spin while they wait, unless told before its import; beside any other busy process that costs them far
# more time than it saves
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import copy
import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import pipeline
import utils
from kernels import enhance_photo, estimate_illumination, training_loss
from loss import PRESETS
from model import build_network
from pairs import degrade
from pairs.lists import find_good, find_pairs, hash_pairs, mix_pairs, split_pairs, write_pairs
from photos.picture import write_photo
from runs.checkpoint import load_network, network_options, read_checkpoint, save_checkpoint
from scoring.metrics import psnr, ssim
from scoring.sheets import draw_curves, save_sheet
from system.files import append_csv, read_csv, save_csv, save_json
from system.process import cores, keep_memory
from system.ranks import gather, join_ranks

opt = SimpleNamespace(
    # network
    arch='hdrnet',  # hdrnet (the predecessor) or deepupe (the paper's released graph)
    luma_bins=8,  # depth of the bilateral grid
    spatial_bin=0,  # its cells along each side; 0 is the architecture's own (hdrnet 8, deepupe 16)
    slicing='',  # corners (hdrnet's own) or centers (deepupe's own), see model.build_network
    illumination='',  # free (hdrnet's own) or clipped to [I, 1] (deepupe's own)
    guide='',  # pointwise (hdrnet's own) or curves (deepupe's own)
    lowres='area',  # how its small copy is made: area (antialiased), bilinear or nearest; '' is the architecture's own
    pedestal=0.0,  # levels of 255 that black counts for, so that it can be brightened, such as 0.5; neither system's
    start_from='',  # a checkpoint to train further, whose network options then replace those above
    # data
    dataset_dir='',  # input/ and expertC_gt/, low/ and high/, or input/ and target/, paired by stem; '' is data/fivek
    dataset_ratio=0.9,  # share of dataset_dir's pairs, or of good_photos alone, to train on; the rest validates
    train_pairs='',  # CSV lists with columns input,target instead of dataset_dir; commas between several
    train_weights='',  # how often each of the lists is drawn in an epoch, such as 1,0.5; '' is once each
    valid_pairs='',  # CSV lists to validate on; needed with train_pairs
    full_size=512,  # side in pixels that photos are resized to in training (hdrnet; deepupe crops 256)
    augment=True,  # crop, flip and rotate
    keep_good=0.0,  # share of items that are (target, target), so that good photos stay as they are
    simulate=0.0,  # share of items whose photo is the target darkened by 0.5 to max_stops stops in linear light
    max_stops=2.5,
    jitter=0.0,  # every photo is darkened or brightened by up to so many stops, its target stays
    good_photos='',  # folders of good photos without partners, commas between, from which dark ones are simulated
    good_weight=1.0,  # how often each of them is drawn in an epoch
    good_stops='-0.2,3.5',  # the simulated photo has so much less light,
    good_contrast='0.55,1',  # so much of the contrast (a power of luma around its geometric mean)
    good_chroma='0.45,1',  # and of the colour,
    good_flare=0.012,  # flare of up to so much of white's light,
    good_balance=0.04,  # each channel off by up to so much,
    good_noise=2.0,  # noise of up to so many levels of 255;
    good_cast=0.0,  # photo and target together have each channel off by up to so much,
    good_levels=0.5,  # and so many percent of the target's pixels become black, and white
    cache='auto',  # decoded photos: ram, file (memory-mapped), auto (ram while they fit), none (decode every epoch)
    num_workers=-1,  # threads that prepare batches; -1 is one per core up to 8, 0 does it between the steps
    limit=0,  # for a first smoke run: only so many training and validation pairs; 0 is all
    overfit=0,  # only so many pairs, validated on themselves, not augmented; 0 is off
    # optimiser
    total_epochs=30,
    train_batch_size=16,  # of all ranks together
    lr=0.0,  # Adam; 0 is the architecture's own (hdrnet 1e-2, deepupe 1e-4)
    weight_decay=1e-5,
    schedule='steps',  # steps (the predecessor's), constant, or cosine (1 epoch of warm-up)
    grad_clip=0.0,  # largest gradient norm; 0 does not clip
    ema=0.0,  # decay per step of averaged weights, which are validated and saved, such as 0.995; 0 is off
    amp='',  # bf16 or fp16 for the coefficient network; '' is float32
    # loss
    loss='',  # weights of hdrnet or deepupe; '' is the architecture's own
    w_reconstruction=-1.0,  # -1 keeps the preset's weight, 0 leaves the term out
    w_color=-1.0,
    w_smoothness=-1.0,
    w_structure=-1.0,  # 1 - SSIM; in neither system's preset
    clamp_reflectance=True,  # clamp R to [0, 1] inside the loss; False diverged wherever it was tried (README)
    # run
    seed=212,
    deterministic=False,  # on CUDA, the same weights every time; slower. On the CPU it is always so
    fused=True,  # --no-fused takes the plain torch path
    device='',  # '' takes CUDA when there is one
    exp_name='simple_batch_16',
    checkpoints_dir='checkpoints',
    resume='',  # a last.pth to go on from; auto takes the run's own where there is one
    valid_interval=1,  # epochs between validations
    visualize_batch=100,  # batches between picture sheets; every epoch's last batch gives one too
    tensorboard=True,  # scalars and pictures for TensorBoard, if it is installed
)

COLUMNS = ('epoch', 'total', *PRESETS['hdrnet'], 'psnr', 'ssim', 'lr', 'photos_per_s', 'waiting', 'seconds')  # log.csv
OWN = {  # what '' and 0 stand for
    'hdrnet': {'lr': 1e-2, 'loss': 'hdrnet'},
    'deepupe': {'lr': 1e-4, 'loss': 'deepupe'},
}
AMP = {'': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
FREE = (  # options that may change when a run is resumed
    'exp_name', 'checkpoints_dir', 'resume', 'total_epochs', 'valid_interval', 'visualize_batch', 'tensorboard',
    'cache', 'num_workers', 'device', 'fused', 'deterministic', 'dataset_dir', 'train_pairs', 'valid_pairs',
    'good_photos',
)  # fmt: skip


def main(opt):
    rank, world = join_ranks()
    device = utils.pick_device(opt.device)
    keep_memory()
    cv2.setNumThreads(1)  # the loader's threads are the parallel ones
    utils.set_seed(opt.seed)
    if opt.deterministic:
        if device.type == 'cuda' and not opt.fused:
            raise ValueError('deterministic: expected fused on CUDA, where grid_sample has no deterministic gradient')
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
    network = make_network(opt).to(device)
    check(opt)
    exp_dir = os.path.join(opt.checkpoints_dir, opt.exp_name)
    train_lists, good, valid_pairs = choose_pairs(opt)
    ranges = good_ranges(opt)
    checkpoint = read_resumable(opt, exp_dir)

    # data
    if rank == 0:
        print(
            f'seed {opt.seed}, {device}, {world} rank(s), {sum(p.numel() for p in network.parameters()):,} parameters'
        )
        print('  '.join(f'{name}={value}' for name, value in vars(opt).items()))
        os.makedirs(exp_dir, exist_ok=True)
    dataset = pipeline.PairDataset(
        train_lists, opt.arch, opt.full_size, opt.augment, opt.keep_good, opt.simulate, opt.max_stops, opt.jitter,
        good, ranges, network.lowres_mode, opt.cache,
        opt.checkpoints_dir if rank == 0 or os.path.isdir(opt.checkpoints_dir) else None, opt.seed,
    )  # fmt: skip
    valid_photos = pipeline.load_pairs(valid_pairs[rank::world])
    if not train_lists:  # good photos alone
        valid_photos = pipeline.degrade_pairs([target for _, target in valid_photos], ranges, opt.seed)
    loader = pipeline.Loader(dataset, opt.train_batch_size, opt.num_workers, device, rank, world)
    data_hash = hash_pairs(dataset.pairs)
    if checkpoint and checkpoint['data_hash'] != data_hash:
        raise ValueError(f'resume: expected the training photos that the run began with, {opt.resume} had others')

    # optimiser, resume
    optimizer = torch.optim.Adam(network.parameters(), opt.lr, weight_decay=opt.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=opt.amp == 'fp16')
    average = copy.deepcopy(network).eval() if opt.ema else network  # what is validated and saved
    epoch, best = 0, float('-inf')
    if checkpoint:
        average.load_state_dict(checkpoint['model'])
        network.load_state_dict(checkpoint['network'])
        optimizer.load_state_dict(checkpoint['optimizer'])
        scaler.load_state_dict(checkpoint['scaler'])
        torch.set_rng_state(checkpoint['random'])
        epoch, best = checkpoint['epoch'], checkpoint['best']
    run = SimpleNamespace(
        network=network, average=average, optimizer=optimizer, scaler=scaler, loader=loader, exp_dir=exp_dir, rank=rank,
        start=time.perf_counter(), first=epoch, model=wrap(network, opt, device, world),
    )  # fmt: skip
    if rank == 0:
        prepare_folder(exp_dir, opt, dataset.pairs, valid_pairs, epoch)
        print(f'{len(dataset)} training pairs an epoch, {len(valid_pairs)} validation pairs')
        print(f'resumed {opt.resume} after epoch {epoch}, best PSNR {best:.3f}' if checkpoint else 'a new run')
    board = open_board(exp_dir, opt, rank, epoch)

    for epoch in range(epoch + 1, opt.total_epochs + 1):  # noqa: B020 - goes on from the checkpoint's
        row = train_epoch(run, epoch, opt)
        if epoch % opt.valid_interval == 0 or epoch == opt.total_epochs:
            row['psnr'], row['ssim'] = validate(average, valid_photos, opt.fused, exp_dir if rank == 0 else '', epoch)
        row['seconds'] = time.perf_counter() - run.start
        if rank == 0:
            save(run, row, best, opt, data_hash)
            show(board, exp_dir, row)
        best = max(best, row.get('psnr', best))
    return 0


def train_epoch(run, epoch, opt):
    """Train for one epoch; returns its row of log.csv, with the means of the losses over all ranks."""
    loader, optimizer, scaler = run.loader, run.optimizer, run.scaler
    loader.dataset.set_epoch(epoch)
    loader.waited, sums, last, start = 0.0, None, None, time.perf_counter()
    run.model.train()
    label = f'epoch {epoch}/{opt.total_epochs}'
    bar = tqdm(loader, label, len(loader), disable=None if run.rank == 0 else True, leave=False, dynamic_ncols=True)
    for step, (positions, (lowres, fullres, target)) in enumerate(bar, 1):
        progress = epoch - 1 + step / len(loader)
        for group in optimizer.param_groups:
            group['lr'] = opt.lr * lr_factor(opt.schedule, progress, opt.total_epochs)
        illumination = run.model(lowres, fullres)
        losses = training_loss(
            run.network, fullres, illumination, target, opt.clamp_reflectance, opt.loss, opt.weights, opt.fused
        )
        optimizer.zero_grad()
        scaler.scale(losses['total']).backward()
        if opt.grad_clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(run.network.parameters(), opt.grad_clip)
        check_finite(last, loader.dataset, run.exp_dir)  # the step before: nothing waits for the device
        last = epoch, step, positions, utils.fetch(losses['total'])
        scaler.step(optimizer)
        scaler.update()
        if opt.ema:
            update_average(run.average, run.network, opt.ema, round(progress * len(loader)))
        values = torch.stack([value.detach() for value in losses.values()])
        sums = values if sums is None else sums + values
        if step % 20 == 0:
            seconds = (time.perf_counter() - run.start) * (opt.total_epochs - progress) / (progress - run.first)
            bar.set_postfix(loss=f'{(sums[0] / step).item():.4f}', run=f'{tqdm.format_interval(seconds)} left')
        if run.rank == 0 and (step % opt.visualize_batch == 0 or step == len(loader)):
            sheet = os.path.join(run.exp_dir, 'train_phase', f'ep_{epoch}_batch_{step}')
            enhanced = run.network.reflectance(fullres, illumination.detach())
            for name, images in (('input', fullres), ('reflect', enhanced), ('illumination', illumination)):
                save_sheet(f'{sheet}_{name}.png', images)
    check_finite(last, loader.dataset, run.exp_dir)
    means = np.mean(gather([(sums / len(loader)).tolist()]), axis=0)
    taken = time.perf_counter() - start
    return {
        'epoch': epoch,
        **dict(zip(losses, map(float, means), strict=True)),
        'lr': optimizer.param_groups[0]['lr'],
        'photos_per_s': len(loader) * loader.batch_size / taken,
        'waiting': loader.waited / taken,
    }


def lr_factor(schedule, progress, total):
    """What the learning rate is multiplied by after `progress` epochs (a fraction within an epoch) of `total`.

    Raises:
        ValueError: unknown schedule.
    Source of 'steps': hermosayhl/DeepUPE_pytorch.
    """
    if schedule == 'constant':
        return 1.0
    if schedule == 'cosine':
        warmup = min(1.0, progress)
        return float(warmup * 0.5 * (1 + torch.tensor(torch.pi * min(progress / total, 1)).cos()))
    if schedule == 'steps':
        epoch = -(-progress // 1) - 1  # progress in (0, 1] is epoch 0
        for last, factor in ((0, 1.0), (1, 0.5), (8, 0.1), (18, 0.05), (30, 0.01)):
            if epoch <= last:
                return factor
        return 0.003
    raise ValueError(f'schedule: expected steps, constant or cosine, got {schedule!r}')


def wrap(network, opt, device, world):
    """The network as train_epoch calls it: (lowres, fullres) -> illumination, on several ranks with mean gradients."""
    model = Estimator(network, opt.fused, AMP[opt.amp])
    if world == 1:
        return model
    return DistributedDataParallel(model, [device] if device.type == 'cuda' else None)


class Estimator(torch.nn.Module):
    """The network by its fastest path, as a module that DistributedDataParallel can wrap."""

    def __init__(self, network, fused, amp):
        super().__init__()
        self.network, self.fused, self.amp = network, fused, amp

    def forward(self, lowres, fullres):
        return estimate_illumination(self.network, lowres, fullres, self.fused, self.amp)


@torch.no_grad()
def update_average(average, network, decay, step):
    """Move averaged weights and BatchNorm statistics towards the network's; the first steps weigh more."""
    decay = min(decay, (1 + step) / (10 + step))
    for ours, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - decay)
        else:
            ours.copy_(theirs)


def check_finite(last, dataset, exp_dir):
    """Stop a run whose loss is not a number, naming the photos of the batch."""
    if last is None:
        return
    epoch, step, positions, fetched = last
    loss = fetched()
    if loss.isfinite():
        return
    names = ', '.join(dataset.pairs[dataset.order[position]][0] for position in positions)
    raise ValueError(
        f'training: expected a finite loss, got {loss.item()} in epoch {epoch}, step {step}; '
        f'{exp_dir}/last.pth holds epoch {epoch - 1}; its photos: {names}'
    )


def validate(network, pairs, fused=True, exp_dir='', epoch=0):
    """Mean (PSNR, SSIM) of whole photos at their own size over all ranks, each photo once, not augmented.

    Args:
        pairs: this rank's (photo, target) arrays.
        exp_dir: where R and S of the first 16 go, in valid_phase/; '' nowhere. Leaves the network in eval mode.
    """
    network.eval()
    shown = 16 if exp_dir else 0

    def score(item):
        position, (photo, target) = item
        enhanced, illumination = enhance_photo(
            network, photo, keep_illumination=position < shown, fused=fused, all_cores=False
        )
        small = []
        if position < shown:
            small = [cv2.resize(image, (192, 144), interpolation=cv2.INTER_AREA)
                     for image in (photo / scale_of(photo), enhanced / scale_of(enhanced), illumination)]  # fmt: skip
        return (psnr(enhanced, target), ssim(enhanced, target)), small

    with ThreadPoolExecutor(cores()) as pool:
        results = list(tqdm(pool.map(score, enumerate(pairs)), 'validate', len(pairs), disable=None, leave=False))
    for i, name in enumerate(('input', 'reflect', 'illumination') if exp_dir else ()):
        images = np.stack([small[i] for _, small in results[:16]]).astype(np.float32)
        path = os.path.join(exp_dir, 'valid_phase', f'ep_{epoch}_{name}.png' if i else 'input.png')
        save_sheet(path, torch.from_numpy(images).permute(0, 3, 1, 2))
    scores = gather([values for values, _ in results])
    return tuple(float(np.mean(column)) for column in zip(*scores, strict=True))


def scale_of(photo):
    return np.float32(np.iinfo(photo.dtype).max)


# ------------------------------------------------------------------------------------------------ before and after


def make_network(opt):
    """A network with random weights, or with those of opt.start_from, whose network options then replace opt's."""
    if opt.start_from:
        network, checkpoint = load_network(opt.start_from)
        vars(opt).update(network_options(checkpoint))
        return network
    shape = opt.arch, opt.luma_bins, opt.spatial_bin
    return build_network(*shape, opt.slicing, opt.illumination, opt.guide, opt.pedestal, opt.lowres)


def check(opt):
    """Fill in the architecture's own lr and loss, and refuse options that make no sense; sets opt.weights."""
    for name, value in OWN.get(opt.arch, OWN['hdrnet']).items():  # an unknown arch is build_network's to refuse
        setattr(opt, name, getattr(opt, name) or value)
    for name, known in (('loss', PRESETS), ('amp', AMP)):
        if getattr(opt, name) not in known:
            raise ValueError(f'{name}: expected one of {", ".join(filter(None, known))}, got {getattr(opt, name)!r}')
    for name in ('valid_interval', 'visualize_batch', 'total_epochs', 'full_size'):
        if getattr(opt, name) < 1:
            raise ValueError(f'{name}: expected 1 or more, got {getattr(opt, name)}')
    if opt.keep_good < 0 or opt.simulate < 0 or opt.keep_good + opt.simulate > 1:
        raise ValueError(
            f'keep_good, simulate: expected shares of at most 1 together, got {opt.keep_good}, {opt.simulate}'
        )
    if not 0 <= opt.ema < 1:
        raise ValueError(f'ema: expected in [0, 1), got {opt.ema}')
    lr_factor(opt.schedule, 1, 1)
    if opt.overfit:
        opt.augment = False
    names = (name for name in PRESETS[opt.loss] if getattr(opt, f'w_{name}') >= 0)
    opt.weights = {name: getattr(opt, f'w_{name}') for name in names}


def choose_pairs(opt):
    """(training lists with weights, good photos with their weight, validation pairs) that the options name."""
    good = find_good(opt.good_photos)
    if good and not opt.train_pairs and not opt.dataset_dir:
        train_lists, (good, valid_pairs) = [], split_pairs(good, opt.dataset_ratio, opt.seed)
    elif opt.train_pairs:
        if not opt.valid_pairs:
            raise ValueError('valid_pairs: expected a CSV list beside train_pairs, got none')
        train_lists = mix_pairs(opt.train_pairs, opt.train_weights)
        valid_pairs = [pair for pairs, _ in mix_pairs(opt.valid_pairs) for pair in pairs]
    else:
        found = find_pairs(opt.dataset_dir or 'data/fivek')
        train_pairs, valid_pairs = split_pairs(found, opt.dataset_ratio, opt.seed)
        train_lists = [(train_pairs, 1.0)]
    if opt.overfit or opt.limit:
        count = opt.overfit or opt.limit
        train_lists = [([pair for pairs, _ in train_lists for pair in pairs][:count], 1.0)] if train_lists else []
        good = good[:count]
        valid_pairs = (train_lists[0][0] if train_lists else good) if opt.overfit else valid_pairs[: opt.limit]
    return train_lists, (good, opt.good_weight), valid_pairs


def good_ranges(opt):
    """degrade.Ranges of the options good_stops to good_levels.

    Raises:
        ValueError: not two numbers, or out of range.
    """
    values = {name: getattr(opt, f'good_{name}') for name in degrade.Ranges._fields}
    for name in ('stops', 'contrast', 'chroma'):
        try:
            low, high = (float(part) for part in values[name].split(','))
        except ValueError as error:
            raise ValueError(f'good_{name}: expected two numbers low,high, got {values[name]!r}') from error
        values[name] = low, high
    ranges = degrade.Ranges(**values)
    ranges.check()
    if opt.good_weight <= 0:
        raise ValueError(f'good_weight: expected more than 0, got {opt.good_weight}')
    return ranges


def read_resumable(opt, exp_dir):
    """The checkpoint that opt.resume names, or None for a new run.

    Raises:
        ValueError: the folder holds a run already; not a last.pth; options that contradict the checkpoint's, by name.
    """
    own = os.path.join(exp_dir, 'last.pth')
    if opt.resume == 'auto':
        opt.resume = own if os.path.exists(own) else ''
    if not opt.resume:
        if os.path.exists(own):
            raise ValueError(f'{exp_dir}: holds a run already; take another --exp_name, or --resume auto')
        return None
    checkpoint = read_checkpoint(opt.resume)
    if 'optimizer' not in checkpoint:
        raise ValueError(f'{opt.resume}: expected a last.pth to resume from, got weights alone')
    before = checkpoint['opt']
    differ = [f'{name} is {value!r}, was {before[name]!r}' for name, value in vars(opt).items()
              if name in before and name not in FREE and before[name] != value]  # fmt: skip
    if opt.schedule == 'cosine' and opt.total_epochs != before['total_epochs']:
        differ.append(f'total_epochs is {opt.total_epochs}, was {before["total_epochs"]}, on which cosine depends')
    if differ:
        raise ValueError(f'{opt.resume}: expected the options of the run that it resumes: {"; ".join(differ)}')
    return checkpoint


def prepare_folder(exp_dir, opt, train_pairs, valid_pairs, epoch):
    """Write what describes the run, and cut rows after `epoch` from the log: a run killed while saving repeats them."""
    for name in ('train_phase', 'valid_phase'):
        os.makedirs(os.path.join(exp_dir, name), exist_ok=True)
    save_json(os.path.join(exp_dir, 'options.json'), plain_options(opt))
    write_pairs(os.path.join(exp_dir, 'train_pairs.csv'), train_pairs)
    write_pairs(os.path.join(exp_dir, 'valid_pairs.csv'), valid_pairs)
    log = os.path.join(exp_dir, 'log.csv')
    save_csv(log, [row for row in read_csv(log) if int(row['epoch']) <= epoch], COLUMNS)


def plain_options(opt):
    return {name: value for name, value in vars(opt).items() if name != 'weights'}


def save(run, row, best, opt, data_hash):
    """Write the log, after a validation epoch_<e>_psnr_<p>.pth and, if it is the best so far, best.pth; then last.pth.

    Each file is whole or not there, and last.pth comes last: what a kill interrupts is repeated bit by bit on resuming.
    """
    append_csv(os.path.join(run.exp_dir, 'log.csv'), row, COLUMNS)
    weights = {
        'arch': opt.arch,
        'model': run.average.state_dict(),
        'epoch': row['epoch'],
        'psnr': row.get('psnr', 0.0),
        'ssim': row.get('ssim', 0.0),
        'opt': plain_options(opt),
    }
    if 'psnr' in row:
        save_checkpoint(os.path.join(run.exp_dir, f'epoch_{row["epoch"]}_psnr_{row["psnr"]:.3f}.pth'), weights)
        if row['psnr'] > best:
            save_checkpoint(os.path.join(run.exp_dir, 'best.pth'), weights)
    resumable = {
        'network': run.network.state_dict(),
        'optimizer': run.optimizer.state_dict(),
        'scaler': run.scaler.state_dict(),
        'random': torch.get_rng_state(),
        'best': max(best, row.get('psnr', best)),
        'data_hash': data_hash,
    }
    save_checkpoint(os.path.join(run.exp_dir, 'last.pth'), {**weights, **resumable})


def open_board(exp_dir, opt, rank, epoch):
    """TensorBoard's writer, or None where it is not wanted or not installed."""
    if rank > 0 or not opt.tensorboard or importlib.util.find_spec('tensorboard') is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(os.path.join(exp_dir, 'tensorboard'), purge_step=epoch + 1)


def show(board, exp_dir, row):
    """Print an epoch's row, redraw curves.png, feed TensorBoard."""
    print('  '.join(f'{name} {value:.3f}' if name == 'psnr' else f'{name} {value:.4g}' for name, value in row.items()))
    rows = read_csv(os.path.join(exp_dir, 'log.csv'))
    charts = [
        draw_curves({'': [{int(r['epoch']): float(r[name]) for r in rows if r[name]}]}, title)
        for name, title in (('total', 'training loss'), ('psnr', 'validation PSNR in dB'))
        if any(r[name] for r in rows)
    ]
    write_photo(os.path.join(exp_dir, 'curves.png'), np.concatenate(charts))
    if board:
        for name, value in row.items():
            board.add_scalar(name, value, row['epoch'])
        for name in ('reflect', 'illumination') if 'psnr' in row else ():
            sheet = cv2.imread(os.path.join(exp_dir, 'valid_phase', f'ep_{row["epoch"]}_{name}.png'))
            board.add_image(name, sheet[..., ::-1], row['epoch'], dataformats='HWC')
        board.flush()


if __name__ == '__main__':
    utils.run_script(main, opt)
