"""What a run leaves behind and goes on from: its state, its folder and lock, its curves; ranks that decide together."""

import os
import signal
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from model import build_network
from pairs import lists
from runs import folder as folders
from runs.curves import draw_curves
from runs.folder import open_folder, take_lock
from runs.state import RunData, State, adopt_options
from system.ranks import BatchNorm, on_rank0
from tests import on_two_ranks
from train import FusedStep


def take_step(state, loss):
    loss.backward()
    state.optimizer.step()


def test_state_comes_back_as_it_was_saved():
    first, second = (State(build_network('hdrnet'), ema=0.9) for _ in range(2))
    take_step(first, first.network.predict_grid(torch.rand(2, 3, 256, 256)).square().sum())
    first.finish_epoch({'psnr': 20.0, 'ssim': 0.8})
    saved = first.state_dict()
    second.load_state_dict(saved)
    again = second.state_dict()
    assert set(again) == set(saved)
    assert (again['epoch'], again['best']) == (1, 20.0)
    for part in ('model', 'network'):
        assert all(torch.equal(again[part][name], value) for name, value in saved[part].items())
    moments = [[value['exp_avg'] for value in state['optimizer']['state'].values()] for state in (saved, again)]
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))


def test_run_of_another_device_goes_on_in_this_ones_way():
    state = State(build_network('hdrnet'))
    saved = state.state_dict()
    saved['optimizer']['param_groups'][0]['fused'] = True  # as on CUDA
    state.load_state_dict(saved)
    assert state.optimizer.param_groups[0]['fused'] is None


def test_best_is_the_highest_psnr_so_far():
    state = State(build_network('hdrnet'))
    assert [state.finish_epoch(scores) for scores in ({'psnr': 20.0}, {}, {'psnr': 19.0}, {'psnr': 21.0})] == [
        True, False, False, True,
    ]  # fmt: skip
    assert (state.epoch, state.best) == (4, 21.0)


@pytest.mark.parametrize('part', ['weight', 'statistic', 'average', 'moment'])
def test_values_that_are_not_finite_are_found_wherever_they_are(part):
    state = State(build_network('hdrnet'), ema=0.9)
    take_step(state, state.network.guide(torch.rand(2, 3, 4, 4)).sum())
    assert state.find_not_finite() == ''
    network = state.average if part == 'average' else state.network
    bias = state.network.guide.output.conv.bias
    values = {'statistic': network.guide.hidden.norm.running_mean, 'moment': state.optimizer.state[bias]['exp_avg']}
    with torch.no_grad():
        values.get(part, network.guide.output.conv.bias)[0] = float('nan')
    assert 'guide' in state.find_not_finite()


# ------------------------------------------------------------------------------------------------------ folder


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    path = str(tmp_path / 'run')
    with open_folder(path):
        (tmp_path / 'run' / 'log.csv').write_text('epoch\n')
        with pytest.raises(ValueError, match='run: another run is writing there'), open_folder(path):
            pass
        assert os.path.exists(path)
    with open_folder(path):
        pass
    assert os.listdir(path) == ['log.csv']


def test_a_killed_run_leaves_no_lock_behind(tmp_path):
    path, (read, write) = str(tmp_path / 'run'), os.pipe()
    child = os.fork()
    if child == 0:
        lock = take_lock(path)
        os.write(write, b'x' if lock else b'')
        signal.pause()
    assert os.read(read, 1) == b'x'
    with pytest.raises(ValueError, match='another run'):
        take_lock(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    take_lock(path).release()


def test_a_run_that_left_nothing_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError), open_folder(str(tmp_path / 'run')):
        raise FileNotFoundError('no photos')
    assert not (tmp_path / 'run').exists()


def test_log_of_a_resumed_run_has_no_epoch_twice(tmp_path):
    log = tmp_path / 'run' / 'log.csv'
    log.parent.mkdir()
    log.write_text('epoch,total,psnr\n1,0.5,20\n2,0.4,\n3,0.3,\n')
    options = SimpleNamespace(arch='hdrnet', tensorboard=False)
    with open_folder(str(log.parent)) as folder:
        folder.describe(options, RunData([], [], [], {}), epoch=2)
        folder.save(State(build_network('hdrnet')), {'epoch': 3, 'total': 0.25}, False)
    lines = log.read_bytes().split(b'\n')
    assert [line.split(b',')[:2] for line in lines[1:4]] == [[b'1', b'0.5'], [b'2', b'0.4'], [b'3', b'0.25']]


# ------------------------------------------------------------------------------------------------------ curves


def ticks(path, charts, monkeypatch):
    """Labels along y of the first chart that draw_curves draws."""
    figures = []
    from matplotlib.backends import backend_agg

    class Canvas(backend_agg.FigureCanvasAgg):
        def print_png(self, *values):
            super().print_png(*values)
            figures.append(self.figure)

    monkeypatch.setattr(backend_agg, 'FigureCanvasAgg', Canvas)
    draw_curves(str(path), charts)
    axes = figures[0].axes[0]
    low, high = axes.get_ylim()
    return [value for value in axes.get_yticks() if low <= value <= high], axes.get_yscale()


@pytest.mark.parametrize('values', [[1e7, 3.0, 0.1], [0.31, 0.29, 0.2], [1e-3, 1e100], [0.5], [0.0, -1.0]])
def test_a_loss_curve_has_about_ten_labels(tmp_path, monkeypatch, values):
    path = tmp_path / 'curves.png'
    run = {**dict(enumerate(values, 1)), 8: float('inf'), 9: float('nan')}
    labels, scale = ticks(path, [('training loss', {'': [run]}, True)], monkeypatch)
    assert len(labels) <= 15
    assert scale == ('log' if max(values) > 0 else 'linear')
    assert cv2.imread(str(path)).shape == (480, 800, 3)


def test_drawing_never_ends_a_run(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise MemoryError('no room for a picture')

    monkeypatch.setattr(folders, 'draw_curves', fail)
    with open_folder(str(tmp_path / 'run')) as folder:
        folder.log.append({'epoch': 1, 'total': 0.5})
        folder.report(folder.log[0])
    assert 'curves.png could not be drawn (no room for a picture)' in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ resume


@pytest.fixture
def data(make_pairs):
    pairs = lists.find_pairs(make_pairs(6))
    return RunData(pairs[:4], [3, 1], pairs[4:], lists.hash_files({path for pair in pairs for path in pair}))


def test_the_same_photos_go_on(data):
    data.check(data.state_dict(), 'last.pth')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda data: {'train': data.train[::-1]},
            r'in the order and in the lists; pair 1 is .*p3.png, not that of .*train_pairs.csv',
        ),
        (lambda data: {'counts': [1, 3]}, 'in the lists; 4 pairs, 4 in .*train_pairs.csv'),
        (lambda data: {'valid': data.valid[:1]}, 'validation photos that the run began with.*1 pairs, 2 in'),
        (
            lambda data: {'train': data.train[:3] + data.valid[:1]},
            'training photos that the run began with, .*pair 4 is',
        ),
    ],
)
def test_other_photos_and_another_order_are_refused_by_name(data, tmp_path, change, message):
    for name in ('train', 'valid'):
        lists.write_pairs(str(tmp_path / f'{name}_pairs.csv'), getattr(data, name), data.hashes)
    with pytest.raises(ValueError, match=message):
        data._replace(**change(data)).check(data.state_dict(), str(tmp_path / 'last.pth'))


def test_only_options_that_do_not_change_the_weights_may_differ():
    before = {'lr': 0.01, 'schedule': 'steps', 'total_epochs': 9}
    checkpoint = {'arch': 'hdrnet', 'model': build_network('hdrnet').state_dict(), 'opt': before}
    opt = SimpleNamespace(lr=0.01, schedule='steps', total_epochs=20, lowres='', start_from='')
    adopt_options(opt, checkpoint, 'last.pth')
    opt.lr, opt.lowres = 0.5, 'area'
    with pytest.raises(
        ValueError, match=r"last.pth: expected the options .*: lr is 0.5, was 0.01; lowres is 'area', was"
    ):
        adopt_options(opt, checkpoint, 'last.pth')


# ------------------------------------------------------------------------------------------------------- ranks


def test_ranks_take_what_the_first_one_decides(tmp_path):
    def decide(rank):
        with open_folder(str(tmp_path / f'of_rank_{rank}'), rank) as folder:
            return folder.read_last('auto')[0]

    (tmp_path / 'of_rank_1').mkdir()
    (tmp_path / 'of_rank_1' / 'last.pth').write_bytes(b'what the other rank does not have')
    assert on_two_ranks(decide, tmp_path) == ['', '']


def test_what_the_first_rank_refuses_all_refuse(tmp_path):
    def refuse(rank):
        def choose():
            raise ValueError(f'refused by rank {rank}')

        try:
            on_rank0(choose)
        except ValueError as error:
            return str(error)

    assert on_two_ranks(refuse, tmp_path) == ['refused by rank 0'] * 2


def test_mixed_precision_trains_on_two_ranks(tmp_path):
    """Statistics over ranks are float32, as those of one process; else the same step, up to bfloat16's rounding."""
    generator = torch.Generator().manual_seed(0)
    lowres, fullres = torch.rand(4, 3, 256, 256, generator=generator), torch.rand(4, 3, 8, 8, generator=generator)

    def step(rank, world=2):
        torch.manual_seed(0)
        state = State(build_network('hdrnet', luma_bins=1, spatial_bin=32))
        state.network.fused = False
        model = FusedStep(state.network, True, 'hdrnet', {})
        model = DistributedDataParallel(model) if world > 1 else model
        loss = model(lowres[rank::world], fullres[rank::world], fullres[rank::world].sqrt())[1]['total']
        take_step(state, loss)
        norm = state.network.splat[1].norm
        return loss.item(), norm.running_mean.numpy(), norm.running_var.numpy(), state.find_not_finite()

    (loss, *statistics, _), both = step(0, 1), on_two_ranks(step, tmp_path)
    assert both[0][3] == both[1][3] == ''
    assert np.mean([both[0][0], both[1][0]]) == pytest.approx(loss, rel=0.02)
    for rank in both:
        for ours, expected in zip(rank[1:3], statistics, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_statistics_over_ranks_are_float32_whatever_the_features(tmp_path, dtype):
    features = (torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 300).to(dtype)

    def statistics(rank, world=2):
        norm = BatchNorm(3).train()
        normalized = norm(features[rank::world])
        assert normalized.dtype == dtype
        return normalized.detach().float().numpy(), norm.running_mean.numpy(), norm.running_var.numpy()

    both, one = on_two_ranks(statistics, tmp_path), statistics(0, 1)
    for rank, ours in enumerate(both):
        np.testing.assert_allclose(ours[0], one[0][rank::2], atol=0.02)  # a rounding of values up to 2
        for value, expected in zip(ours[1:], one[1:], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5)  # 300 squared overflows float16
