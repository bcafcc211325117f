"""Train the illumination network on pairs of underexposed and well exposed photos.

    python train.py --recipe paper --dataset_dir path/to/fivek --exp_name paper
    python train.py --recipe predecessor --dataset_dir path/to/fivek --exp_name predecessor
    python train.py --train_pairs a/train.csv,b/train.csv --valid_pairs b/valid.csv --exp_name mine
    python train.py --good_photos my_photos --exp_name mine   # no pairs: it learns your taste
    python train.py ... --resume auto                         # go on where a killed run stopped, or begin
    torchrun --nproc_per_node=8 train.py ...                  # the same global batch, shared

Writes to checkpoints/<exp_name>/: options.json, run.jsonl (command, commit, versions, hardware), train_pairs.csv,
valid_pairs.csv, log.csv and curves.png (redrawn each epoch), last.pth (to resume), best.pth (best validation PSNR),
epoch_<e>_psnr_<p>.pth, 4 x 4 picture sheets of I, R and S of training batches in train_phase/ and of the same
validation photos every epoch in valid_phase/.

A recipe fills in what is neither given nor changed in the block below; the block's own values are the predecessor's.
Validation always scores the untouched photos at their own size, each once.
"""

# ruff: noqa: E402 - options are parsed before torch is imported

from types import SimpleNamespace

import utils
from system.process import use_wide_vectors

opt = SimpleNamespace(
    recipe='',  # see RECIPES; '' is taste for good photos alone, else arch's own: predecessor or paper
    # network
    arch='hdrnet',  # hdrnet (the predecessor) or deepupe (the paper's released graph)
    luma_bins=8,  # depth of the bilateral grid
    spatial_bin=0,  # its cells along each side; 0 is the architecture's own (hdrnet 8, deepupe 16)
    slicing='',  # corners (hdrnet's own) or centers (deepupe's own), see model.build_network
    illumination='',  # free (hdrnet's own) or clipped to [I, 1] (deepupe's own)
    guide='',  # pointwise (hdrnet's own) or curves (deepupe's own)
    lowres='bilinear',  # how its small copy is made: area (antialiased), bilinear or nearest; '' is arch's own
    pedestal=0.0,  # levels of 255 that black counts for, so that it can be brightened, such as 0.5; neither system's
    vibrance=0.0,  # hue and chroma that evaluation gives back, such as 0.2, see model.IlluminationNet; neither system's
    start_from='',  # a checkpoint to train further, whose network options then replace those above
    freeze_norm=False,  # BatchNorm keeps the statistics of start_from: few photos give no better ones
    # data
    dataset_dir='',  # input/ and expertC_gt/, low/ and high/, ... (docs/training.md), by stem; '' is data/fivek
    split='ratio',  # of it: ratio, paper (FiveK's a4501 to a5000 validate), or the predecessor's options.pkl
    dataset_ratio=0.9,  # share of dataset_dir's pairs, or of good_photos alone, to train on; the rest validates
    train_pairs='',  # CSV lists with columns input,target, or folders, instead of dataset_dir; commas between several
    train_weights='',  # how often each of the lists is drawn in an epoch, such as 1,0.5; '' is once each
    valid_pairs='',  # such lists or folders to validate on instead of a split; needed with train_pairs
    full_size=512,  # side in pixels that photos are resized to in training (hdrnet; deepupe crops 256)
    augment=True,  # crop, flip and rotate (hdrnet); crop at random, else in the middle (deepupe)
    identity_share=0.0,  # share of the pairs that are (target, target), so that good photos stay as they are
    darken=0.0,  # share of the others whose photo gets 0.5 to max_stops stops less light, and noise; its target stays
    max_stops=4.5,
    good_photos='',  # folders of good photos without partners, commas between, from which dark ones are simulated
    good_weight=1.0,  # how often each of them is drawn in an epoch
    good_identity_share=0.25,  # share of these items that stay as they are, photo and target
    cache='file',  # decoded photos: file (memory-mapped, beside the runs), ram, or none (decode every epoch)
    num_workers=-1,  # threads that prepare batches; -1 is one per core up to 8, 0 does it between the steps
    limit=0,  # for a first smoke run: only so many training and validation pairs; 0 is all
    overfit=0,  # only so many pairs, validated on themselves, not augmented; 0 is off
    # optimiser
    total_epochs=100,
    train_batch_size=16,  # of all ranks together
    drop_last=False,  # leave out an epoch's last batch where it is not full
    lr=1e-2,  # Adam
    weight_decay=1e-5,
    schedule='steps',  # steps (the predecessor's), constant, or cosine (1 epoch of warm-up)
    grad_clip=0.0,  # largest gradient norm; 0 does not clip
    ema=0.0,  # decay per step of averaged weights, which are validated and saved, such as 0.995; 0 is off
    amp='',  # bf16 for the coefficient network; '' is float32
    # loss
    loss='',  # weights of hdrnet or deepupe; '' is the architecture's own
    w_reconstruction=-1.0,  # -1 keeps the preset's weight, 0 leaves the term out
    w_color=-1.0,
    w_smoothness=-1.0,
    w_structure=-1.0,  # 1 - SSIM; in neither system's preset
    w_tone=-1.0,  # squared error of square roots, in which blacks count; in neither system's preset
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

DEFAULTS = vars(opt).copy()
RECIPES = {  # what differs from the block above, which is the predecessor's. Sources: docs/training.md
    'predecessor': {},
    'paper': {
        'arch': 'deepupe', 'lowres': 'nearest', 'split': 'paper', 'total_epochs': 40, 'train_batch_size': 16,
        'lr': 1e-4, 'weight_decay': 0.0, 'schedule': 'constant',
    },
    'lol': {
        'spatial_bin': 16, 'pedestal': 1.0, 'lowres': 'area', 'full_size': 256, 'identity_share': 0.1, 'darken': 0.25,
        'max_stops': 4.0, 'total_epochs': 60, 'drop_last': True, 'schedule': 'cosine', 'ema': 0.998, 'w_structure': 0.3,
        'valid_interval': 5,
    },
    'general': {
        'spatial_bin': 16, 'vibrance': 0.2, 'lowres': 'area', 'full_size': 256, 'identity_share': 0.08, 'darken': 0.3,
        'good_identity_share': 1.0, 'total_epochs': 12, 'drop_last': True, 'schedule': 'cosine', 'ema': 0.998,
        'w_color': 1.0, 'w_smoothness': 0.002, 'w_structure': 0.3, 'w_tone': 1.0, 'valid_interval': 12,
    },
    'taste': {
        'start_from': 'general', 'freeze_norm': True, 'dataset_ratio': 0.8, 'full_size': 256, 'good_weight': 2.0,
        'good_identity_share': 0.2, 'darken': 0.35, 'total_epochs': 20, 'lr': 5e-4,
        'schedule': 'cosine', 'ema': 0.98, 'w_color': 1.0, 'w_smoothness': 0.002, 'w_structure': 0.3, 'w_tone': 1.0,
    },
}  # fmt: skip
NAMED = {name for recipe in RECIPES.values() for name in recipe}
RECIPES['predecessor'] = {name: value for name, value in DEFAULTS.items() if name in NAMED}

RULES = {  # of every option, see utils.check_options
    **utils.NETWORK_RULES, 'recipe': ['', *RECIPES],
    'dataset_ratio': (0.01, 0.99), 'full_size': (1, 8192), 'identity_share': (0.0, 1.0), 'darken': (0.0, 1.0),
    'max_stops': (0.5, 16.0), 'good_weight': (0.001, 1000.0), 'good_identity_share': (0.0, 1.0),
    'cache': ['file', 'ram', 'none'], 'num_workers': (-1, None), 'limit': (0, None), 'overfit': (0, None),
    'total_epochs': (1, None), 'train_batch_size': (2, None), 'lr': (1e-12, None), 'weight_decay': (0.0, None),
    'schedule': ['steps', 'constant', 'cosine'], 'grad_clip': (0.0, None), 'ema': (0.0, 0.999999),
    'amp': ['', 'bf16'], 'loss': ['', 'hdrnet', 'deepupe'], 'seed': (0, 2**32 - 1), 'valid_interval': (1, None),
    'visualize_batch': (1, None),
    **{f'w_{term}': [-1.0, (0.0, None)] for term in ('reconstruction', 'color', 'smoothness', 'structure', 'tone')},
    **dict.fromkeys(('augment', 'freeze_norm', 'drop_last', 'deterministic', 'fused', 'tensorboard'), bool),
    **dict.fromkeys(('start_from', 'dataset_dir', 'split', 'train_pairs', 'train_weights', 'valid_pairs', 'good_photos',
                     'device', 'exp_name', 'checkpoints_dir', 'resume'), str),
}  # fmt: skip

if __name__ == '__main__':  # before torch is imported: --help and a wrong option are answered at once
    GIVEN = utils.parse_overrides(opt, RULES, __file__)
    use_wide_vectors()

import os

# torch's threads spin while they wait, unless told before its import; beside any other busy process that costs them far
# more time than it saves
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import pipeline
from kernels import enhance_photo, estimate_illumination, kernels_for, training_loss
from loss import PRESETS
from model import build_network
from pairs import lists
from photos.contact_sheet import save_sheet
from runs.checkpoint import load_network, network_options
from runs.folder import open_folder
from runs.state import RunData, State, adopt_options
from scoring.metrics import psnr, ssim
from system.process import cores, tune_malloc
from system.ranks import BatchNorm, all_gather_list, init_distributed

LEAST_GOOD = 20  # photos of one's taste: with fewer, the few that validate say nothing


def main(opt):
    utils.check_options(opt, RULES)
    check_combination(opt)
    rank, world = init_distributed()
    device = set_up_torch(opt)
    with open_folder(os.path.join(opt.checkpoints_dir, opt.exp_name), rank) as folder:
        path, checkpoint = folder.read_last(opt.resume)
        train_lists, good, valid_pairs = choose_pairs(opt)

        # network
        network, opt = make_network(opt, path, checkpoint)
        state = State(network.to(device), opt.lr, opt.weight_decay, opt.ema)
        graph = device.type == 'cuda' and world == 1
        model = FusedStep(network, opt.amp == 'bf16', opt.loss, loss_weights(opt), graph)
        if world > 1:
            model = DistributedDataParallel(model, [device] if device.type == 'cuda' else None)
        if rank == 0:
            parameters = sum(p.numel() for p in network.parameters())
            print(f'seed {opt.seed}, {device}, {world} rank(s), {parameters:,} parameters')
            print(describe_options(opt))

        # data
        beside = opt.checkpoints_dir if os.path.isdir(opt.checkpoints_dir) else None  # of a rank on another machine
        dataset = pipeline.PairDataset(train_lists, opt, good, network.lowres_mode, beside)
        loader = pipeline.Loader(
            dataset, opt.train_batch_size, opt.num_workers, device, rank, world, drop_last=opt.drop_last
        )
        valid_photos = pipeline.load_pairs(
            valid_pairs, range(rank, len(valid_pairs), world), opt.cache, beside, least=7
        )
        if not train_lists and not opt.valid_pairs:  # good photos alone
            valid_photos.seed = opt.seed
        data = RunData.of(dataset, valid_pairs)

        # resume
        if checkpoint:
            data.check(checkpoint, path)
            state.load_state_dict(checkpoint)
        folder.describe(opt, data, state.epoch)
        if rank == 0:
            resumed = f'resumed {path} after epoch {state.epoch}, best PSNR {state.best:.3f}'
            print(resumed if checkpoint else 'a new run')
            print(f'{len(dataset)} training pairs an epoch, {len(valid_pairs)} validation pairs')
            warn_of_overlap(data, opt.overfit)
        if opt.start_from and not checkpoint:  # best.pth is never worse than the start
            state.scores = validate(state.average, valid_photos)
            state.best = state.scores['psnr']
            folder.save_best(state)
            unprocessed = np.mean([psnr(*valid_photos[i]) for i in range(len(valid_photos))])
            folder.reference = f'  (start {state.best:.3f}, unprocessed {unprocessed:.3f})'

        for epoch in range(state.epoch + 1, opt.total_epochs + 1):
            row = train_epoch(state, model, loader, epoch, opt, folder)
            scores = {}
            if epoch % opt.valid_interval == 0 or epoch == opt.total_epochs:
                scores = validate(state.average, valid_photos, folder.path if rank == 0 else '', epoch)
            row |= {**scores, 'seconds': state.seconds()}
            better = state.finish_epoch(scores)
            folder.save(state, row, better)
            folder.report(row)
    return 0


def train_epoch(state, model, loader, epoch, opt, folder):
    """Train `model`, a FusedStep, for one epoch; returns its row of log.csv, with means of the losses of all ranks."""
    network, optimizer = state.network, state.optimizer
    loader.dataset.set_epoch(epoch)
    sums, unchecked, start = 0.0, [], time.perf_counter()
    model.train()
    if opt.freeze_norm:
        network.apply(lambda module: module.eval() if isinstance(module, BatchNorm) else None)
    label = f'epoch {epoch}/{opt.total_epochs}'
    bar = tqdm(loader, label, len(loader), disable=None if loader.rank == 0 else True, leave=False, dynamic_ncols=True)
    for step, (positions, (lowres, fullres, target)) in enumerate(bar, 1):
        done = (epoch - 1) * len(loader) + step  # steps of the run, this one included
        for group in optimizer.param_groups:
            group['lr'] = opt.lr * lr_factor(opt.schedule, done / len(loader), opt.total_epochs)

        optimizer.zero_grad()
        illumination, losses = model(lowres, fullres, target)
        losses['total'].backward()
        if opt.grad_clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), opt.grad_clip)
        optimizer.step()
        if opt.ema:
            update_average(state.average, network, opt.ema, done)

        sums = sums + torch.stack([value.detach() for value in losses.values()])
        unchecked.append((step, positions, losses['total'].detach().clone()))  # a graph's next step overwrites it
        # a GPU is not waited for at every step
        if loader.device.type == 'cpu' or step % 20 == 0 or step == len(loader):
            check_losses(unchecked, loader.dataset, f'epoch {epoch}', folder.path)
            unchecked = []
        if step % 20 == 0:
            seconds = (time.perf_counter() - start) / step * (opt.total_epochs * len(loader) - done)
            progress = f'loss={(sums[0] / step).item():.4f}, {tqdm.format_interval(seconds)} left without validation'
            bar.set_postfix_str(progress)
            if loader.rank == 0 and done % 100 == 0 and (bar.disable or done == 100):
                tqdm.write(f'{label}, step {step}/{len(loader)}: {progress}')
        if loader.rank == 0 and (step % opt.visualize_batch == 0 or step == len(loader)):
            sheet = os.path.join(folder.path, 'train_phase', f'ep_{epoch}_batch_{step}')
            enhanced = network.reflectance(fullres, illumination)
            for name, images in (('input', fullres), ('reflect', enhanced), ('illumination', illumination)):
                save_sheet(f'{sheet}_{name}.png', images)
    if name := state.find_not_finite():
        raise ValueError(f'training: expected finite weights, got others in {name} after epoch {epoch}; '
                         f'{folder.path}/last.pth holds epoch {epoch - 1}')  # fmt: skip
    means = np.mean(all_gather_list([(sums / len(loader)).tolist()]), axis=0)
    taken = time.perf_counter() - start
    return {
        'epoch': epoch,
        **dict(zip(losses, map(float, means), strict=True)),
        'lr': optimizer.param_groups[0]['lr'],
        'photos_per_s': loader.count / taken,
        'waiting': loader.waited / taken,
    }


class FusedStep(torch.nn.Module):
    """(lowres, fullres, target) -> (illumination, losses) by the fastest path, a module for DistributedDataParallel.

    Args:
        bf16: run the coefficient network in bfloat16.
        loss, weights: preset and weights of loss.total_loss.
        graph: record CUDA graphs at the first step, see kernels.cuda.record_step.
    """

    def __init__(self, network, bf16, loss, weights, graph=False):
        super().__init__()
        self.network, self.bf16, self.loss, self.weights, self.graph = network, bf16, loss, weights, graph

    def forward(self, lowres, fullres, target):
        kernels = self.graph and kernels_for(self.network, fullres)
        if kernels:
            self.graph = False
            kernels.record_step(self, (lowres, fullres, target))
            return self(lowres, fullres, target)
        illumination = estimate_illumination(self.network, lowres, fullres, self.bf16)
        losses = training_loss(self.network, fullres, illumination, target, True, self.loss, self.weights)
        return illumination.detach(), losses


def lr_factor(schedule, progress, total):
    """What the learning rate is multiplied by after `progress` epochs (a fraction within an epoch) of `total`.

    Args:
        schedule: 'steps', 'constant' or 'cosine', which warms up over the first epoch.
    Source of 'steps': hermosayhl/DeepUPE_pytorch.
    """
    if schedule == 'constant':
        return 1.0
    if schedule == 'cosine':
        warmup = min(1.0, progress)
        return float(warmup * 0.5 * (1 + torch.tensor(torch.pi * min(progress / total, 1)).cos()))
    epoch = -(-progress // 1) - 1  # progress in (0, 1] is epoch 0
    steps = ((0, 1.0), (1, 0.5), (8, 0.1), (18, 0.05), (30, 0.01))
    return next((factor for last, factor in steps if epoch <= last), 0.003)


@torch.no_grad()
def update_average(average, network, decay, step):
    """Move averaged weights and BatchNorm statistics towards the network's; the first steps weigh more."""
    decay = min(decay, (1 + step) / (10 + step))
    for ours, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - decay)
        else:
            ours.copy_(theirs)


def validate(network, photos, exp_dir='', epoch=0):
    """Mean scores {'psnr', 'ssim'} of whole photos at their own size over all ranks, each photo once, not augmented.

    Args:
        photos: this rank's (photo, target) arrays, a pipeline.Photos or list.
        exp_dir: where R and S of the first 16 go, in valid_phase/; '' nowhere. Leaves the network in eval mode.
    """
    network.eval()

    def score(position):
        photo, target = photos[position]
        shown = bool(exp_dir) and position < 16
        enhanced, illumination = enhance_photo(network, photo, keep_illumination=shown)
        small = [shrink(image) for image in (photo, enhanced, illumination)] if shown else []
        return (psnr(enhanced, target), ssim(enhanced, target)), small

    with ThreadPoolExecutor(cores()) as pool:
        scored = pool.map(score, range(len(photos)))
        results = list(tqdm(scored, 'validate', len(photos), disable=None, leave=False))
    for i, name in enumerate(('input', 'reflect', 'illumination') if exp_dir else ()):
        images = np.stack([small[i] for _, small in results[:16]])
        path = os.path.join(exp_dir, 'valid_phase', f'ep_{epoch}_{name}.png' if i else 'input.png')
        save_sheet(path, torch.from_numpy(images).permute(0, 3, 1, 2))
    columns = zip(*all_gather_list([values for values, _ in results]), strict=True)
    return {name: float(np.mean(column)) for name, column in zip(('psnr', 'ssim'), columns, strict=True)}


def shrink(image):
    """A photo or illumination (H, W, 3) as a sheet shows it: (144, 192, 3) float32."""
    top = np.iinfo(image.dtype).max if image.dtype.kind == 'u' else 1
    return cv2.resize(image / np.float32(top), (192, 144), interpolation=cv2.INTER_AREA)


def check_losses(steps, dataset, epoch, exp_dir):
    """Stop a run whose loss is not a number, naming the photos of the batch; steps: (step, positions, loss) of each."""
    for step, positions, loss in steps:
        if not loss.isfinite():
            names = ', '.join(dataset.pairs[dataset.order[position]][0] for position in positions)
            raise ValueError(f'training: expected a finite loss, got {loss.item()} in {epoch}, step {step}; '
                             f'{exp_dir}/last.pth holds the epoch before; its photos: {names}')  # fmt: skip


def warn_of_overlap(data, overfit):
    """Say on stderr how many validation photos are among the training photos, by content, unless that is asked for."""
    train_hashes = [{data.hashes[pair[side]] for pair in data.train} for side in (0, 1)]
    overlap = lists.find_overlap(data.valid, data.train, train_hashes, data.hashes)
    if (overlap['same_input'] or overlap['same_target']) and not overfit:
        print(
            f'WARNING: of {len(data.valid)} validation pairs, {overlap["same_input"]} inputs and '
            f'{overlap["same_target"]} targets are among the training photos by content: '
            'validation does not tell how well other photos come out',
            file=sys.stderr,
        )


# ------------------------------------------------------------------------------------------ what options stand for


def choose_recipe(opt, given=()):
    """Fill in the recipe's values of those options that are neither in `given` nor changed in the block at the top."""
    alone = opt.good_photos and not (opt.train_pairs or opt.dataset_dir or opt.start_from)
    usual = 'paper' if opt.arch == 'deepupe' else 'taste' if alone else 'predecessor'
    opt.recipe = opt.recipe or usual
    for name, value in RECIPES[opt.recipe].items():
        if name not in given and getattr(opt, name) == RECIPES['predecessor'][name]:
            setattr(opt, name, value)


def describe_options(opt):
    """One line with the recipe, every option, and beside it the recipe's value where another was given."""
    usual = vars(opt) | RECIPES['predecessor'] | RECIPES[opt.recipe or 'predecessor']
    if opt.start_from:  # it brings its network
        usual |= {name: getattr(opt, name) for name in utils.NETWORK_RULES}
    values = [f'{name}={value}' + (f' (recipe: {usual[name]})' if value != usual[name] else '')
              for name, value in vars(opt).items() if name != 'recipe']  # fmt: skip
    return f'recipe {opt.recipe}: {"  ".join(values)}'


def check_combination(opt):
    """Refuse what RULES cannot: unknown names, and an option that another leaves without effect."""
    if unknown := set(vars(opt)) - set(RULES):
        raise ValueError(f'{min(unknown)}: expected an option of train.py (--help names them all)')
    if not opt.exp_name.strip('./'):
        raise ValueError(f'exp_name: expected the name of a folder, got {opt.exp_name!r}')
    if opt.train_pairs and not opt.valid_pairs:
        raise ValueError('valid_pairs: expected a CSV list or a folder beside train_pairs, got none')
    if opt.split not in ('ratio', 'paper') and not opt.split.endswith('.pkl'):
        raise ValueError(f"split: expected ratio, paper or the predecessor's options.pkl, got {opt.split!r}")
    usual = DEFAULTS | RECIPES[opt.recipe or 'predecessor']
    for names, usable, needed in (
        (['dataset_dir'], not opt.train_pairs, 'without --train_pairs'),
        (['split', 'dataset_ratio'], not opt.valid_pairs, 'without --valid_pairs'),
        (['train_weights'], opt.train_pairs, 'with --train_pairs'),
        (['full_size'], opt.arch == 'hdrnet', 'with --arch hdrnet'),
        (['freeze_norm'], opt.start_from, 'with --start_from'),
        (['max_stops'], opt.darken, 'with --darken'),
        (['good_weight', 'good_identity_share'], opt.good_photos, 'with --good_photos'),
        (['limit'], not opt.overfit, 'without --overfit'),
        (utils.NETWORK_RULES, not opt.start_from, 'without --start_from, which brings its network'),
    ):
        for name in names:
            if not usable and getattr(opt, name) not in (usual[name], DEFAULTS[name]):
                raise ValueError(f'{name}: expected only {needed}, got {getattr(opt, name)!r}')


def set_up_torch(opt):
    """Seeds, threads and determinism; returns the device."""
    device = utils.pick_device(opt.device)
    tune_malloc()
    cv2.setNumThreads(1)  # the loader's threads are the parallel ones
    utils.set_seed(opt.seed)
    if opt.deterministic:
        if device.type == 'cuda' and not opt.fused:
            raise ValueError('deterministic: expected fused on CUDA, where grid_sample has no deterministic gradient')
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
    return device


def make_network(opt, path='', checkpoint=None):
    """(network, the run's options): what '' stands for, and the network of opt.start_from, are in a copy of `opt`.

    A run that goes on from the last.pth at `path` has the checkpoint's network; its weights are loaded later.
    """
    opt, network = SimpleNamespace(**{**vars(opt), 'resume': path}), None
    if opt.start_from and not checkpoint:
        network, start = load_network(opt.start_from)
        vars(opt).update(network_options(start))
    opt.loss = opt.loss or (checkpoint['arch'] if checkpoint else opt.arch)
    opt.augment = opt.augment and not opt.overfit
    if checkpoint:
        adopt_options(opt, checkpoint, path)
    network = network or build_network(**{name: getattr(opt, name) for name in utils.NETWORK_RULES})
    network.fused = opt.fused
    return network, opt


def loss_weights(opt):
    """{term: weight} of those that replace the preset's."""
    return {name: getattr(opt, f'w_{name}') for name in PRESETS[opt.loss] if getattr(opt, f'w_{name}') >= 0}


def choose_pairs(opt):
    """(training lists with weights, good photos with their weight, validation pairs) that the options name."""
    good = lists.find_good(opt.good_photos)
    train_lists = lists.mix_pairs(opt.train_pairs, opt.train_weights)
    valid_pairs = [pair for pairs, _ in lists.mix_pairs(opt.valid_pairs) for pair in pairs]
    if not train_lists and (opt.dataset_dir or not good):
        dataset_dir = opt.dataset_dir or 'data/fivek'
        pairs = lists.find_pairs(dataset_dir)
        if not valid_pairs and opt.split.endswith('.pkl'):
            pairs, valid_pairs = lists.read_options_pickle(opt.split, dataset_dir)
        elif not valid_pairs:
            pairs, valid_pairs = lists.split_dataset(pairs, opt.split, opt.dataset_ratio, opt.seed)
        train_lists = [(pairs, 1.0)]
    elif not valid_pairs:
        if len(good) < LEAST_GOOD and not (opt.overfit or opt.limit):
            raise ValueError(f'good_photos: expected {LEAST_GOOD} or more photos, got {len(good)} in {opt.good_photos}')
        good, valid_pairs = lists.split_pairs(good, opt.dataset_ratio, opt.seed)
    if count := opt.overfit or opt.limit:
        train_lists = [([pair for pairs, _ in train_lists for pair in pairs][:count], 1.0)] if train_lists else []
        good = good[:count]
        valid_pairs = (train_lists[0][0] if train_lists else good) if opt.overfit else valid_pairs[: opt.limit]
    return train_lists, (good, opt.good_weight), valid_pairs


if __name__ == '__main__':
    choose_recipe(opt, GIVEN)
    utils.run_script(main, opt)
