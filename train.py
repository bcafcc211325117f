"""Train the illumination network on pairs of underexposed and well exposed photos.

    python train.py --dataset_dir path/to/fivek --exp_name fivek
    python train.py --train_pairs a/train.csv,b/train.csv --valid_pairs b/valid.csv --exp_name mine

Writes to checkpoints/<exp_name>/: options.json, train_pairs.csv, valid_pairs.csv, log.csv, last.pth (to resume),
best.pth (best validation PSNR), epoch_<e>_psnr_<p>.pth, and 4 x 4 picture sheets of I, R and S in train_phase/.

The defaults are the predecessor's, but validation scores the untouched photos at their own size, each once.
"""

import os
import time
from types import SimpleNamespace

import torch
from tqdm import tqdm

import pipeline
import utils
from fast import enhance_photo, estimate_illumination, training_loss
from loss import PRESETS
from metrics import psnr, ssim
from model import build_network, reflectance

opt = SimpleNamespace(
    # network
    arch='hdrnet',  # hdrnet (the predecessor) or deepupe (the paper's released graph)
    luma_bins=8,  # depth of the bilateral grid
    spatial_bin=0,  # its cells along each side; 0 is the architecture's own (hdrnet 8, deepupe 16)
    # data
    dataset_dir='data/fivek',  # input/ and expertC_gt/, low/ and high/, or input/ and target/, paired by stem
    dataset_ratio=0.9,  # share of dataset_dir's pairs to train on; the rest validates
    train_pairs='',  # CSV lists with columns input,target instead of dataset_dir; commas between several
    train_weights='',  # how often each of the lists is drawn in an epoch, such as 1,0.5; '' is once each
    valid_pairs='',  # CSV lists to validate on; needed with train_pairs
    full_size=512,  # side in pixels that photos are resized to in training (hdrnet; deepupe crops 256)
    augment=True,  # crop, flip and rotate
    keep_good=0.0,  # share of items that are (target, target), so that good photos stay as they are
    cache=True,  # keep the decoded photos in memory
    num_workers=2,  # processes that prepare batches; 0 does it in the training process
    # optimiser
    total_epochs=30,
    train_batch_size=16,
    lr=0.0,  # Adam; 0 is the architecture's own (hdrnet 1e-2, deepupe 1e-4)
    weight_decay=1e-5,
    schedule='steps',  # steps (the predecessor's), constant, or cosine (1 epoch of warm-up)
    grad_clip=0.0,  # largest gradient norm; 0 does not clip
    # loss
    loss='',  # weights of hdrnet or deepupe; '' is the architecture's own
    w_reconstruction=-1.0,  # -1 keeps the preset's weight, 0 leaves the term out
    w_color=-1.0,
    w_smoothness=-1.0,
    clamp_reflectance=True,  # clamp R to [0, 1] inside the loss; False diverged wherever it was tried (README)
    # run
    seed=212,
    fused=True,  # --no-fused takes the plain torch path
    device='',  # '' takes CUDA when there is one
    exp_name='simple_batch_16',
    checkpoints_dir='checkpoints',
    resume='',  # a last.pth to go on from
    valid_interval=1,  # epochs between validations
    visualize_batch=100,  # batches between picture sheets; every epoch's last batch gives one too
)

COLUMNS = (
    'epoch',
    'total',
    'reconstruction',
    'color',
    'smoothness',
    'psnr',
    'ssim',
    'lr',
    'photos_per_s',
)  # of log.csv
OWN = {  # what '' and 0 stand for
    'hdrnet': {'lr': 1e-2, 'loss': 'hdrnet'},
    'deepupe': {'lr': 1e-4, 'loss': 'deepupe'},
}


def main(opt):
    device = utils.pick_device(opt.device)
    utils.set_seed(opt.seed)
    network = build_network(opt.arch, opt.luma_bins, opt.spatial_bin).to(device)
    for name, value in OWN[opt.arch].items():
        setattr(opt, name, getattr(opt, name) or value)
    if opt.loss not in PRESETS:
        raise ValueError(f'loss: expected one of {", ".join(PRESETS)}, got {opt.loss!r}')
    if opt.valid_interval < 1 or opt.visualize_batch < 1:
        raise ValueError('valid_interval, visualize_batch: expected 1 or more')
    weights = {name: getattr(opt, f'w_{name}') for name in PRESETS[opt.loss] if getattr(opt, f'w_{name}') >= 0}
    exp_dir = os.path.join(opt.checkpoints_dir, opt.exp_name)
    if not opt.resume and os.path.exists(os.path.join(exp_dir, 'last.pth')):
        raise ValueError(f'{exp_dir}: holds a run already; take another --exp_name, or --resume {exp_dir}/last.pth')
    print(f'seed {opt.seed}, {device}, {sum(p.numel() for p in network.parameters()):,} parameters')
    print('  '.join(f'{name}={value}' for name, value in vars(opt).items()))

    # data
    if opt.train_pairs:
        if not opt.valid_pairs:
            raise ValueError('valid_pairs: expected a CSV list beside train_pairs, got none')
        train_lists = pipeline.mix_pairs(opt.train_pairs, opt.train_weights)
        valid_pairs = [pair for pairs, _ in pipeline.mix_pairs(opt.valid_pairs) for pair in pairs]
    else:
        train_pairs, valid_pairs = pipeline.split_pairs(
            pipeline.find_pairs(opt.dataset_dir), opt.dataset_ratio, opt.seed
        )
        train_lists = [(train_pairs, 1.0)]
    dataset = pipeline.PairDataset(
        train_lists, opt.arch, opt.full_size, opt.augment, opt.keep_good, opt.cache, opt.seed
    )
    valid_photos = pipeline.load_pairs(valid_pairs)
    loader = pipeline.make_loader(dataset, opt.train_batch_size, opt.num_workers)
    print(f'{len(dataset)} training pairs an epoch, {len(valid_pairs)} validation pairs')

    # optimiser, resume
    optimizer = torch.optim.Adam(network.parameters(), opt.lr, weight_decay=opt.weight_decay)
    first_epoch, best = 1, float('-inf')
    if opt.resume:
        checkpoint = utils.read_checkpoint(opt.resume)
        if 'optimizer' not in checkpoint:
            raise ValueError(f'{opt.resume}: expected a last.pth to resume from, got weights alone')
        network.load_state_dict(checkpoint['model'])
        optimizer.load_state_dict(checkpoint['optimizer'])
        first_epoch, best = checkpoint['epoch'] + 1, checkpoint['best']
        print(f'resumed {opt.resume} after epoch {checkpoint["epoch"]}, best PSNR {best:.3f}')

    os.makedirs(os.path.join(exp_dir, 'train_phase'), exist_ok=True)
    utils.save_json(os.path.join(exp_dir, 'options.json'), vars(opt))
    pipeline.write_pairs(os.path.join(exp_dir, 'train_pairs.csv'), dataset.pairs)
    pipeline.write_pairs(os.path.join(exp_dir, 'valid_pairs.csv'), valid_pairs)

    for epoch in range(first_epoch, opt.total_epochs + 1):
        dataset.set_epoch(epoch)
        network.train()
        sums, start = {}, time.perf_counter()
        bar = tqdm(loader, f'epoch {epoch}/{opt.total_epochs}', disable=None, leave=False, dynamic_ncols=True)
        for step, batch in enumerate(bar, 1):
            for group in optimizer.param_groups:
                group['lr'] = opt.lr * lr_factor(opt.schedule, epoch - 1 + step / len(loader), opt.total_epochs)
            lowres, fullres, target = (images.to(device, non_blocking=True) for images in batch)
            illumination = estimate_illumination(network, lowres, fullres, opt.fused)
            losses = training_loss(
                fullres, illumination, target, network.eps, opt.clamp_reflectance, opt.loss, weights, opt.fused
            )
            optimizer.zero_grad()
            losses['total'].backward()
            if opt.grad_clip:
                torch.nn.utils.clip_grad_norm_(network.parameters(), opt.grad_clip)
            optimizer.step()
            sums = {name: sums.get(name, 0) + value.detach() for name, value in losses.items()}
            if step % 20 == 0:
                bar.set_postfix(loss=f'{sums["total"].item() / step:.4f}')
            if step % opt.visualize_batch == 0 or step == len(loader):
                enhanced = reflectance(fullres, illumination.detach(), network.eps)
                sheet = os.path.join(exp_dir, 'train_phase', f'ep_{epoch}_batch_{step}')
                for name, images in (('input', fullres), ('reflect', enhanced), ('illumination', illumination)):
                    utils.save_sheet(f'{sheet}_{name}.png', images)
        speed = len(loader) * loader.batch_size / (time.perf_counter() - start)
        row = {'epoch': epoch, **{name: value.item() / len(loader) for name, value in sums.items()}}

        # validate, save
        if epoch % opt.valid_interval == 0 or epoch == opt.total_epochs:
            row['psnr'], row['ssim'] = validate(network, valid_photos, opt.fused)
        row.update(lr=optimizer.param_groups[0]['lr'], photos_per_s=speed)
        save(exp_dir, network, optimizer, row, best, opt)
        best = max(best, row.get('psnr', best))
        print(
            '  '.join(f'{name} {value:.4g}' if name != 'psnr' else f'psnr {value:.3f}' for name, value in row.items())
        )
    return 0


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


def validate(network, pairs, fused=True):
    """Mean (PSNR, SSIM) of whole photos at their own size, no augmentation; leaves the network in eval mode."""
    network.eval()
    scores = []
    for photo, target in tqdm(pairs, 'validate', disable=None, leave=False, dynamic_ncols=True):
        enhanced, _ = enhance_photo(network, photo, fused=fused)
        scores.append((psnr(enhanced, target), ssim(enhanced, target)))
    return tuple(sum(column) / len(scores) for column in zip(*scores, strict=True))


def save(exp_dir, network, optimizer, row, best, opt):
    """Write last.pth, and after a validation epoch_<e>_psnr_<p>.pth and, when it is the best so far, best.pth."""
    weights = {
        'arch': opt.arch,
        'model': network.state_dict(),
        'epoch': row['epoch'],
        'psnr': row.get('psnr', 0.0),
        'ssim': row.get('ssim', 0.0),
        'opt': vars(opt),
    }
    if 'psnr' in row:
        utils.save_checkpoint(os.path.join(exp_dir, f'epoch_{row["epoch"]}_psnr_{row["psnr"]:.3f}.pth'), weights)
        if row['psnr'] > best:
            utils.save_checkpoint(os.path.join(exp_dir, 'best.pth'), weights)
    resumable = {**weights, 'optimizer': optimizer.state_dict(), 'best': max(best, row.get('psnr', best))}
    utils.save_checkpoint(os.path.join(exp_dir, 'last.pth'), resumable)
    utils.append_csv(os.path.join(exp_dir, 'log.csv'), row, COLUMNS)


if __name__ == '__main__':
    utils.run_script(main, opt)
