"""Metrics against their libraries, protocol, baselines, statistics, splits, and what test.py refuses."""

import base64
import csv
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import skimage.color
import skimage.metrics
import torch

import test as evaluate  # the script
from model import build_network
from pairs import lists
from photos import contact_sheet
from photos.colour import decode_srgb, encode_srgb
from photos.picture import read_photo, write_photo
from runs.checkpoint import save_checkpoint
from scoring import appearance, metrics, protocol, report
from tests import two_ranks

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# what dill 0.4.1 made of the predecessor's dict: a function with attributes, two lists of pairs, an object of a class
# with code, and a value that would write a file when it is loaded
DILL = (
    'c-n<j-'
    '%Aux6rR~#cXdZIsUYp4d<b_zTz}+Cnh~q`u(6p!5F(e^y;tv**_mnPj+!NGklMoyjE)#V(31p4^rvVDJ@=n<X53wWgze1Ea^~E7z'
    'x#dXe0Qpe-OnvrbZtOJ#T{3IN>gE310?(hb(NGoW=cjD1G_ARW5Y+t@R(|^=gSUdVJ@#hL95+*A)Zg}X;hojptuRytV)ghk_vkQR'
    'O`59R!Y>I0B(fSs@l8Bss=oj%}SVsG9jfvSW?)8qzS2*QNWF2F&qs^wjoJT5$ntYWt1JuVi7MN-'
    '=27sd5lhqvP4QMW_d9E@a_7a=^xi$1sk9`2{CQkk!G}j5XAGhprpE_7w#h}<`VOXC431BxKmG#I~A5&%Poo(R>%q44P?$89B}O=P'
    '`A$yvNe}^GEbHoGq&IofT5-'
    'UL;nXDZVE7517NCa#k2&yAng*|k*2sKHC$75o|KFsd|*n)gR`EHFI`siNt#%WN$VMvh=NUQrHW0h0MDtUQ(DFjM!C(X!C~7S8dwY'
    ')q+079h(citi6Kv9crwFNXtbK$&`J0AG^uNiYq=3q{d;U5-'
    'wqm?*BXg6MkA9JbfvH1{@cK>o%fN_P0T9Y$5Ec<W6GFX8E7ymwB&oL+Lv3$-'
    'Ge`e4!cK>x<`+@M|YmW+z#H&Ts>BIHOl5U(V*>wya-IoHY=fcJ{5%S)EEC197DmG%LMP^bI{16Jl>{a4jz!?5|gf=*g&3-'
    ')Xb;^s#%0WGT%|vc4y)Fhk2MkymF@*^O+0Gd67Sh$fgLP4laVC>LA3o92trU&)Nb6;S$wa!$UqPpW#`Q9y)_lgc#X|*}?1^1m%zT'
    'jqEJ&2L;{tODa)vDy7pZ)W0(ctit2-'
    'RiHYJ?PGHf8V&w>X7tRw_<2j{Cq~E=RXQgtZq8k`8O64*A_p`<!f}}ms%6y^l41R_JgwqhU;~$hbpCEtdw*}I{nOl$(R*z4{x<r4'
    '8GYa4M@Ij#(SKO~HLIySt!Y@&@XLfH2nPNFJN)CT'
)


def random_pair(seed=0, size=(24, 30)):
    rng = np.random.default_rng(seed)
    target = cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), size[::-1])
    return np.clip(target * 0.5 + rng.integers(0, 20, target.shape), 0, 255).astype(np.uint8), target


# ------------------------------------------------------------------------------------------------------ metrics


def test_psnr_and_ssim_are_scikit_images():
    photo, target = random_pair()
    assert metrics.psnr(photo, target) == skimage.metrics.peak_signal_noise_ratio(target, photo)
    mse = ((photo.astype(float) - target) ** 2).mean()
    assert metrics.psnr(photo, target) == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-6)
    expected = np.mean([skimage.metrics.structural_similarity(target[..., c], photo[..., c]) for c in range(3)])
    assert metrics.ssim(photo, target) == pytest.approx(expected, abs=1e-6)  # float32 against float64
    assert metrics.psnr(photo, photo) == float('inf')
    assert metrics.ssim(photo, photo) == 1
    with pytest.raises(ValueError, match='expected two photos of one size'):
        metrics.psnr(photo, target[:-1])


def test_gaussian_ssim_is_the_papers():
    """Against a plain 11 x 11 Gaussian window by OpenCV on the inside, where borders play no part."""
    photo, target = random_pair()
    x, y = (image.astype(np.float64) for image in (target, photo))

    def blur(image):
        return cv2.GaussianBlur(image, (11, 11), 1.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    full = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert metrics.ssim_gauss(photo, target) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-5)
    assert metrics.ssim_gauss(photo, target) != pytest.approx(metrics.ssim(photo, target), abs=1e-3)


def test_colour_differences_are_opencvs_lab_and_published_values():
    photo, target = random_pair()
    lab = [cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for image in (photo, target)]
    expected = np.linalg.norm(lab[0] - lab[1], axis=-1).mean()
    assert metrics.de76(photo, target) == pytest.approx(expected, rel=5e-3)  # OpenCV's Lab is table-driven
    # Sharma, Wu and Dalal 2005, table 1, pair 1: CIEDE2000 2.0425
    assert skimage.color.deltaE_ciede2000((50, 2.6772, -79.7751), (50, 0, -82.7485)) == pytest.approx(2.0425, abs=1e-4)
    lab = [skimage.color.rgb2lab(image) for image in (target, photo)]
    assert metrics.de2000(photo, target) == pytest.approx(skimage.color.deltaE_ciede2000(*lab).mean(), rel=1e-4)
    assert metrics.de76(photo, photo) == metrics.de2000(photo, photo) == 0


def test_lpips_that_is_not_at_hand_gives_its_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    assert 'at hand' in metrics.find_lpips() or 'not installed' in metrics.find_lpips()
    monkeypatch.setattr(metrics.importlib.util, 'find_spec', lambda package: None)
    functions, blanks = evaluate.choose_metrics('psnr,lpips')
    assert functions['lpips'] is None
    assert blanks == {'lpips': 'torchmetrics is not installed'}


@pytest.fixture
def alexnet(tmp_path, monkeypatch):
    """Weights of AlexNet where torchvision looks for them, random ones, where torchvision runs."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    try:
        from torchvision import models
    except (ImportError, RuntimeError):  # not installed, or built for another torch
        return
    torch.manual_seed(0)
    name = os.path.basename(models.AlexNet_Weights.DEFAULT.url)
    (tmp_path / 'checkpoints').mkdir()
    torch.save(models.alexnet().state_dict(), tmp_path / 'checkpoints' / name)


@pytest.mark.parametrize('name', metrics.LABELS)
def test_threads_change_no_value_of_a_metric(name, request):
    if name == 'lpips':
        request.getfixturevalue('alexnet')
    function = evaluate.choose_metrics(f'psnr,{name}')[0][name]
    if function is None:
        pytest.skip(metrics.find_lpips())
    pairs = [random_pair(seed, (64, 70)) for seed in range(4)] * 3
    alone = [function(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: function(*pair), pairs)) == alone
    assert len(set(alone)) == 4


def test_each_thread_has_a_metric_object_of_its_own():
    """On an object that keeps its sum, as torchmetrics' do: shared among threads, sums of two photos mix."""

    class Sum:
        def __call__(self, values):
            self.total = 0
            for value in values:
                time.sleep(1e-4)  # lets another thread in
                self.total += value
            return self.total

    own = metrics.one_per_thread(Sum)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: own()([i] * 30), range(12))) == [30 * i for i in range(12)]


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"metrics: expected psnr, ssim.*got 'vmaf'"):
        evaluate.choose_metrics('psnr,vmaf')


# ----------------------------------------------------------------------------------------- protocol, baselines


def score(rule, result, target):
    """PSNR by a protocol."""
    return metrics.psnr(*rule.align(result, target))


def test_protocol_resizes_and_crops():
    photo = np.zeros((30, 60, 3), np.uint8)
    assert protocol.Protocol('long20').prepare(photo).shape == (10, 20, 3)
    assert protocol.Protocol('16x8').prepare(photo).shape == (8, 16, 3)
    photo, target = random_pair()
    photo[0], target[0] = 0, 255  # a wrong border row
    whole, cropped = (score(protocol.Protocol(crop_border=n), photo, target) for n in (0, 1))
    assert cropped > whole
    with pytest.raises(ValueError, match='nothing left'):
        score(protocol.Protocol(crop_border=12), photo, target)
    for bad in ('512', 'long', '0x5', '5x5x5'):
        with pytest.raises(ValueError, match='resize: expected'):
            protocol.Protocol(bad).check()


def test_gt_mean_undoes_a_wrong_brightness_and_says_so():
    _, target = random_pair()
    target = np.clip(target, 20, 120)
    dark = (target * 0.5).astype(np.uint8)
    plain, matched = (score(protocol.Protocol(gt_mean=on), dark, target) for on in (False, True))
    assert plain < 20
    assert matched > 45
    assert 'GT-MEAN' in str(protocol.Protocol(gt_mean=True))
    assert 'GT-MEAN' not in str(protocol.Protocol())


def test_best_gamma_is_found_among_all():
    _, target = random_pair()
    dark = protocol.gamma_levels(2.5)[target]
    decibels = protocol.gamma_decibels(dark, target)
    scores = [metrics.psnr(protocol.gamma_levels(gamma)[dark], target) for gamma in protocol.GAMMAS]
    np.testing.assert_allclose(decibels, scores, rtol=1e-9)
    label, function = protocol.best_gamma([decibels])
    assert label == 'gamma 0.40 (best here)'
    np.testing.assert_array_equal(function(dark), protocol.gamma_levels(0.4)[dark])


def test_baselines_are_scikit_images():
    photo, _ = random_pair()
    functions = protocol.choose_baselines(['gamma', 'clahe', 'rescale', 'best_gamma'])
    assert list(functions) == ['gamma 0.4', 'CLAHE', 'rescale']
    np.testing.assert_allclose(functions['gamma 0.4'](photo), 255 * (photo / 255) ** 0.4, atol=1)
    low, high = int(photo.min()), int(photo.max())
    np.testing.assert_array_equal(functions['rescale'](photo), ((photo - low) * (255 / (high - low))).round())
    assert all(function(photo).dtype == np.uint8 for function in functions.values())
    for bad in ('magic', 'gamma'):
        with pytest.raises(ValueError, match=rf"baselines: expected .* each once, got '{bad}'"):
            protocol.choose_baselines(['gamma', bad])


# --------------------------------------------------------------------------------------------------- statistics


def test_bootstrap_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(20, 2, 400)
    summary = report.summarize(values)
    assert summary['mean'] == values.mean()
    assert summary['median'] == np.median(values)
    assert summary['std'] == pytest.approx(values.std(ddof=1))
    half = 1.96 * values.std(ddof=1) / 20
    np.testing.assert_allclose(summary['ci95'], [values.mean() - half, values.mean() + half], atol=0.03)
    assert report.summarize(np.array([1.0, 2.0, 3.0, float('inf')]))['ci95'] is None


def test_one_or_two_photos_have_no_interval():
    found = [report.summarize(np.arange(count) + 20.0) for count in (1, 2, 3)]
    assert [summary['ci95'] is None for summary in found] == [True, True, False]
    assert report.write_cell('psnr', found[1]) == '20.500'
    assert '±' in report.write_cell('psnr', found[2])


def test_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(0)
    base = rng.normal(20, 5, 50)
    paired = report.compare(base + 0.5 + rng.normal(0, 0.1, 50), base)
    assert paired['mean'] == pytest.approx(0.5, abs=0.05)
    assert paired['ci95'][0] > 0.4
    assert paired['won'] == 1


@pytest.mark.parametrize('count', [1, 2, 7, 15, 40])
def test_extremes_never_show_a_photo_twice(count):
    values = np.random.default_rng(0).permutation(count)
    chosen = report.extremes(values)
    positions = [i for part in chosen.values() for i in part]
    assert len(positions) == len(set(positions)) == min(count, 15)
    assert values[chosen['best'][0]] == count - 1
    assert values[positions[-1]] == 0


# --------------------------------------------------------------------------------------------------- appearance


def measure(photo):
    return list(appearance.measure_appearance(appearance.to_lab(photo)).values())


def test_appearance_is_that_of_opencvs_lab():
    photo, _ = random_pair()
    lightness, *colour = cv2.split(cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    darkest = np.percentile(lightness, (1, 5))
    expected = lightness.mean(), lightness.std(), np.hypot(*colour).mean(), *darkest
    np.testing.assert_allclose(measure(photo), expected, rtol=5e-3)  # OpenCV's has tables
    np.testing.assert_allclose(measure(photo.astype(np.uint16) * 257), measure(photo), rtol=1e-5)


def test_a_pale_result_has_lifted_blacks_and_less_chroma():
    _, target = random_pair()
    pale = (target * 0.5 + 64).astype(np.uint8)
    labs = [appearance.to_lab(photo) for photo in (pale, target)]
    numbers = [appearance.measure_appearance(lab) for lab in labs]
    row = numbers[0] | {f'target_{name}': value for name, value in numbers[1].items()}
    found = report.compare_appearance([row | appearance.measure_faults(*labs, labs[1])])
    for name in ('black_point', 'veil'):
        assert found[name]['difference']['mean'] > 5
    assert found['contrast']['result'] < 0.6 * found['contrast']['target']
    assert found['chroma']['result'] < 0.6 * found['chroma']['target']
    assert found['lightness']['difference']['mean'] == numbers[0]['lightness'] - numbers[1]['lightness']
    words = report.describe_appearance(found)
    assert re.fullmatch(
        r'lightness \S+, black point \+\S+, veil \+\S+, contrast -\d+ %, chroma -\d+ % of its targets; '
        r'hue error to target \S+ degrees, hue error to input \S+ degrees, blown 0.00 %',
        words,
    )


def lab_of(*pixels):
    """Lab (1, n, 3) of pixels (L, C, hue in degrees)."""
    polar = np.array(pixels, np.float32)
    hue = np.radians(polar[:, 2])
    return np.stack([polar[:, 0], polar[:, 1] * np.cos(hue), polar[:, 1] * np.sin(hue)], axis=-1)[None]


@pytest.mark.parametrize(('first', 'second', 'angle'), [(40, 70, 30), (350, 10, 20), (10, 190, 180), (5, 5, 0)])
def test_hue_error_is_the_angle_between_hues(first, second, angle):
    assert appearance.hue_error(lab_of((50, 20, first)), lab_of((70, 35, second))) == pytest.approx(angle, abs=1e-4)


def test_hue_error_weighs_pixels_by_their_lower_chroma():
    photo = lab_of((50, 30, 0), (50, 10, 0), (50, 0, 0), (50, 40, 0))
    result = lab_of((50, 60, 10), (50, 10, 50), (50, 40, 170), (50, 0, 90))  # the grey ones do not count
    assert appearance.hue_error(result, photo) == pytest.approx((30 * 10 + 10 * 50) / 40, abs=1e-4)
    assert appearance.hue_error(photo, result) == pytest.approx(20, abs=1e-4)
    grey = lab_of((50, 0, 0))
    assert appearance.hue_error(grey, grey) == 0


def test_a_gain_in_linear_light_keeps_hues():
    """XYZ scales as a whole, so a and b do too, where no value is clipped and none lies in Lab's linear toe."""
    dark = np.random.default_rng(0).integers(9000, 30000, (8, 8, 3)).astype(np.uint16)
    linear = decode_srgb(dark / 65535)
    bright = (encode_srgb(linear * 3) * 65535).round().astype(np.uint16)
    assert appearance.hue_error(*map(appearance.to_lab, (bright, dark))) < 0.01  # levels of 16 bit are rounded


def test_blown_is_what_became_white_and_was_not():
    photo = np.full((2, 5, 3), 100, np.uint8)
    result = photo.copy()
    photo[0, 0] = result[0, 0] = 255  # was white before
    result[0, 1], result[0, 2], result[0, 3] = 255, 254, (255, 255, 100)  # white, white but for a level, yellow
    assert appearance.measure_faults(*map(appearance.to_lab, (result, photo)))['blown'] == pytest.approx(20)


def test_large_photos_are_measured_on_a_smaller_copy():
    lab = appearance.to_lab(np.full((1000, 2000, 3), 90, np.uint8))
    assert lab.shape == (500, 1000, 3)
    np.testing.assert_allclose(lab, lab[:1, :1] * np.ones_like(lab), atol=1e-4)


# ------------------------------------------------------------------------------------------------------- splits


def test_papers_split_is_the_last_500_ids():
    pairs = [(f'input/a{i:04d}-IMG.jpg', '') for i in (1, 4500, 4501, 5000)] + [('input/a45010.jpg', '')]
    assert [pair[0][6:11] for pair in lists.split_dataset(pairs, 'paper', 0.9, 1)[1]] == ['a4501', 'a5000']
    assert lists.split_dataset(pairs, 'ratio', 0.6, 1) == lists.split_pairs(pairs, 0.6, 1)
    with pytest.raises(ValueError, match='a4501 to a5000'):
        lists.split_dataset(pairs[:2], 'paper', 0.9, 1)


def test_predecessors_options_are_read_and_nothing_in_them_runs(make_pairs, tmp_path):
    folder = make_pairs(4)
    (tmp_path / 'options.pkl').write_bytes(zlib.decompress(base64.b85decode(DILL)))
    before = set(sys.modules)
    train, valid = lists.read_options_pickle(str(tmp_path / 'options.pkl'), folder)
    assert [os.path.basename(pair[0]) for pair in train] == ['p0.png', 'p1.png', 'p2.png']
    assert valid == [(f'{folder}/input/p3.png', f'{folder}/target/p3.png')]
    assert set(sys.modules) == before
    assert not os.path.exists('/tmp/pwned')
    os.remove(f'{folder}/input/p3.png')
    os.remove(f'{folder}/target/p3.png')
    with pytest.raises(ValueError, match=r'p3.png: in valid_images_list, not in'):
        lists.read_options_pickle(str(tmp_path / 'options.pkl'), folder)


@pytest.mark.parametrize('content', [b'', b'cos\nsystem\n(S"touch ran"\ntR.', pickle.dumps([1, 2]), b'\x80\x04garbage'])
def test_other_pickles_are_refused(make_pairs, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'options.pkl').write_bytes(content)
    with pytest.raises(ValueError, match=r'options.pkl: expected a pickle with train_images_list and'):
        lists.read_options_pickle('options.pkl', make_pairs(2))
    assert not (tmp_path / 'ran').exists()


# ------------------------------------------------------------------------------------------------------ test.py


@pytest.fixture
def checkpoint(make_pairs, tmp_path):
    """A checkpoint in a folder of its own, with the training list of pairs 0 and 1 of four."""
    folder = tmp_path / 'run'
    folder.mkdir()
    state = build_network('hdrnet').state_dict()
    save_checkpoint(str(folder / 'best.pth'), {'arch': 'hdrnet', 'model': state, 'opt': {}})
    lists.write_pairs(str(folder / 'train_pairs.csv'), lists.find_pairs(make_pairs(4))[:2])
    return str(folder / 'best.pth')


def run_test(**values):
    return evaluate.main(type(evaluate.opt)(**{**vars(evaluate.opt), 'device': 'cpu', **values}))


def test_report_has_every_method_photo_and_hash(checkpoint, make_pairs, tmp_path, capsys):
    folder = make_pairs(4)
    other = shutil.copytree(f'{folder}/target', tmp_path / 'other')  # a system that is always right
    status = run_test(checkpoints_file=checkpoint, dataset_dir=folder, results_dir=str(other), baselines='gamma')
    assert status == 0
    out = tmp_path / 'run' / 'test_data'
    summary = json.loads((out / 'summary.json').read_text())
    assert list(summary['methods']) == ['unprocessed input', 'run_best', 'other', 'gamma 0.4']
    assert summary['methods']['other']['psnr']['mean'] == 'inf'
    assert summary['photos'] == 4
    assert len(summary['split_sha256']) == len(summary['methods']['run_best']['sha256']) == 16
    with open(out / 'per_photo.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    mean = np.mean([float(row['psnr']) for row in rows if row['method'] == 'gamma 0.4'])
    assert summary['methods']['gamma 0.4']['psnr']['mean'] == pytest.approx(mean)
    printed = capsys.readouterr()
    assert '| run_best |' in printed.out
    assert printed.out.startswith((out / 'table.md').read_text())
    assert cv2.imread(str(out / 'extremes.jpg')).shape[1] == 900
    assert summary['methods']['run_best']['overlap'] == {'same_input': 2, 'same_target': 2, 'same_name': 2}
    assert 'WARNING: run_best: of 4 test pairs, 2 inputs and 2 targets' in printed.err


def test_denoising_is_marked(checkpoint, make_pairs, tmp_path):
    assert run_test(checkpoints_file=checkpoint, dataset_dir=make_pairs(2), denoise=1.0) == 0
    summary = json.loads((tmp_path / 'run' / 'test_data' / 'summary.json').read_text())
    assert summary['methods']['run_best + denoise 1']['denoise'] == 1.0


def test_targets_as_input_are_scored_once_each(checkpoint, make_pairs, tmp_path):
    pairs = lists.find_pairs(make_pairs(4))
    lists.write_pairs(str(tmp_path / 'pairs.csv'), [*pairs, (pairs[0][0], pairs[1][1])])
    values = {'pairs_file': str(tmp_path / 'pairs.csv'), 'result_dir': str(tmp_path / 'out'), 'strength': 0.0}
    assert run_test(checkpoints_file=checkpoint, targets_as_input=True, **values) == 0
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert summary['photos'] == len(pairs) == 4
    assert summary['methods']['run_best']['psnr']['mean'] == 'inf'
    assert summary['pairs'].endswith('_targets_as_input')


def test_overlap_is_found_by_content_under_another_name(checkpoint, make_pairs, tmp_path):
    """The training photos themselves are gone: the hashes in the list are enough."""
    folder = make_pairs(4)
    for side in ('input', 'target'):
        (tmp_path / 'new' / side).mkdir(parents=True)
        shutil.move(f'{folder}/{side}/p1.png', tmp_path / 'new' / side / 'renamed.png')
    run_test(checkpoints_file=checkpoint, dataset_dir=str(tmp_path / 'new'), result_dir=str(tmp_path / 'out'))
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert summary['methods']['run_best']['overlap'] == {'same_input': 1, 'same_target': 1, 'same_name': 0}


@pytest.mark.parametrize('kind', ['size', 'missing', 'unreadable', 'no result'])
def test_no_mean_with_a_bad_pair_unless_skipped(checkpoint, make_pairs, tmp_path, capsys, kind):
    folder = make_pairs(4)
    pairs = lists.find_pairs(folder)
    lists.write_pairs(str(tmp_path / 'list.csv'), pairs)
    results = shutil.copytree(f'{folder}/target', tmp_path / 'results')
    target = pairs[2][1]
    if kind == 'size':
        write_photo(target, np.zeros((9, 9, 3), np.uint8))
    elif kind == 'missing':
        os.remove(target)
    elif kind == 'unreadable':
        with open(target, 'wb') as file:
            file.write(b'none')
    else:
        os.remove(results / 'p2.png')
    values = {'checkpoints_file': checkpoint, 'pairs_file': str(tmp_path / 'list.csv'), 'results_dir': str(results)}
    with pytest.raises(ValueError, match=r'no mean from the other 3 of 4 pairs(.|\n)*p2.png'):
        run_test(**values)
    assert run_test(**values, skip_bad=True, result_dir=str(tmp_path / 'out')) == 0
    assert 'SKIPPED 1 of 4 pairs' in capsys.readouterr().out
    assert len(json.loads((tmp_path / 'out' / 'summary.json').read_text())['skipped']) == 1


def read_summary(folder):
    return json.loads((folder / 'summary.json').read_text())


@pytest.mark.parametrize('name', metrics.METRICS)
def test_16_bit_photos_score_as_8_bit(name):
    photo, target = random_pair()
    deep = photo.astype(np.uint16) * 257
    assert metrics.METRICS[name](deep, target) == metrics.METRICS[name](photo, target)


def test_16_bit_pairs_are_scored_in_8(checkpoint, make_pairs, tmp_path):
    """A checkpoint gets the photo's 16 bits; values between two levels of 8 bit change no other method."""
    folder = make_pairs(2)
    values = {'checkpoints_file': checkpoint, 'strength': 0.05, 'dataset_dir': folder}
    values['baselines'] = 'gamma,clahe,rescale,best_gamma'
    assert run_test(**values, result_dir=str(tmp_path / 'plain')) == 0
    seen = []
    for name in (f'{side}/p{i}.png' for side in ('input', 'target') for i in range(4)):
        deep = read_photo(f'{folder}/{name}').astype(np.uint16) * 257
        write_photo(f'{folder}/{name}', deep + np.where(deep < 65535, 100, 0).astype(np.uint16))
        seen.append(read_photo(f'{folder}/{name}').dtype)
    assert run_test(**values, result_dir=str(tmp_path / 'deep')) == 0
    assert set(seen) == {np.dtype(np.uint16)}
    plain, deep = (read_summary(tmp_path / kind)['methods'] for kind in ('plain', 'deep'))
    assert {label for label in plain if plain[label]['psnr'] != deep[label]['psnr']} == {'run_best'}


def test_16_bit_results_are_rounded_to_8(make_pairs, tmp_path):
    folder = make_pairs(2)
    (tmp_path / 'other').mkdir()
    for name in ('p0.png', 'p1.png'):
        write_photo(str(tmp_path / 'other' / name), read_photo(f'{folder}/target/{name}').astype(np.uint16) * 257)
    run_test(checkpoints_file='', dataset_dir=folder, results_dir=str(tmp_path / 'other'), result_dir=str(tmp_path))
    assert read_summary(tmp_path)['methods']['other']['psnr']['mean'] == 'inf'


def test_inputs_of_one_stem_are_not_matched_with_one_result(make_pairs, tmp_path):
    folder = make_pairs(2)
    (tmp_path / 'more').mkdir()
    shutil.copy(f'{folder}/input/p1.png', tmp_path / 'more' / 'p0.png')
    pairs = [
        (f'{folder}/input/p0.png', f'{folder}/target/p0.png'),
        (str(tmp_path / 'more' / 'p0.png'), f'{folder}/target/p1.png'),
    ]
    lists.write_pairs(str(tmp_path / 'list.csv'), pairs)
    values = {'checkpoints_file': '', 'pairs_file': str(tmp_path / 'list.csv'), 'result_dir': str(tmp_path / 'out')}
    with pytest.raises(ValueError, match=r'matched by stem(.|\n)*p0.png: same stem as .*p0.png'):
        run_test(**values, results_dir=f'{folder}/target')
    assert run_test(**values) == 0  # no other system's results: nothing is matched


def test_a_pair_listed_twice_is_named(make_pairs, tmp_path):
    pairs = lists.find_pairs(make_pairs(2))
    lists.write_pairs(str(tmp_path / 'list.csv'), [*pairs, pairs[1]])
    with pytest.raises(ValueError, match=r'p1.png: listed twice'):
        run_test(checkpoints_file='', pairs_file=str(tmp_path / 'list.csv'))


def test_two_methods_of_one_name_keep_a_row_each(checkpoint, make_pairs, tmp_path):
    (tmp_path / 'more' / 'run').mkdir(parents=True)
    other = shutil.copy(checkpoint, tmp_path / 'more' / 'run' / 'best.pth')
    folder = make_pairs(2)
    results = shutil.copytree(f'{folder}/target', tmp_path / 'rescale')
    values = {'dataset_dir': folder, 'result_dir': str(tmp_path / 'out'), 'denoise': 1.0}
    run_test(checkpoints_file=f'{checkpoint},{other}', results_dir=str(results), baselines='rescale', **values)
    suffix = ' + denoise 1'
    assert list(read_summary(tmp_path / 'out')['methods']) == [
        'unprocessed input', f'run_best{suffix}', f'{other}{suffix}', 'rescale', 'rescale (baseline)'
    ]  # fmt: skip
    with pytest.raises(ValueError, match='expected once, got it twice'):
        run_test(checkpoints_file=f'{checkpoint},{checkpoint},{checkpoint}', **values)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'split': 'paper', 'pairs_file': 'a.csv'}, "split: expected only with --dataset_dir .*, got 'paper'"),
        ({'split': 'ratio'}, 'split: expected only with --dataset_dir'),
        ({'seed': 3, 'dataset_dir': 'a'}, 'seed: expected only with --split ratio, got 3'),
        ({'denoise': 1.0, 'checkpoints_file': ''}, 'denoise: expected only with --checkpoints_file, got 1.0'),
        ({'fused': False, 'checkpoints_file': ''}, 'fused: expected only with --checkpoints_file, got False'),
        ({'resize': '8x8', 'protocol': 'lol', 'dataset_dir': 'a'}, 'resize: expected only without --protocol'),
        ({'pairs_file': 'a.csv', 'dataset_dir': 'b'}, "pairs_file: expected only without --dataset_dir.*, got 'a.csv'"),
        ({'photos': 'a', 'metrics': 'psnr'}, "metrics: expected only without --photos, got 'psnr'"),
        ({'photos': 'a', 'pairs_file': 'b.csv'}, "pairs_file: expected only without --photos, got 'b.csv'"),
        ({'photos': 'a', 'baselines': 'best_gamma'}, 'baselines: expected only without best_gamma.* with --photos'),
        ({'pairs_file': 5}, 'pairs_file: expected text, got 5'),
        ({'dataset_ratio': '0.9'}, "dataset_ratio: expected 0.01 to 0.99, got '0.9'"),
        ({'strength': 2.0}, 'strength: expected 0 to 1.5, got 2.0'),
        ({'protocol': 'psnr'}, "protocol: expected one of '', lol, got 'psnr'"),
        ({'crop_border': -1}, 'crop_border: expected a whole number, 0 or more, got -1'),
    ],
)
def test_options_without_effect_or_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        run_test(**values)


def test_best_gamma_is_that_of_the_pairs_which_are_scored(make_pairs, tmp_path):
    folder = make_pairs(4)
    for name in ('p0', 'p1', 'p2', 'p3'):  # p3 would want no gamma at all, and cannot be scored
        target = read_photo(f'{folder}/target/{name}.png')
        write_photo(f'{folder}/input/{name}.png', target if name == 'p3' else protocol.gamma_levels(2)[target])
    pairs = lists.find_pairs(folder)
    results = shutil.copytree(f'{folder}/target', tmp_path / 'results')
    os.remove(results / 'p3.png')
    lists.write_pairs(str(tmp_path / 'list.csv'), [*pairs, ('missing.png', pairs[0][1])])
    values = {'checkpoints_file': '', 'pairs_file': str(tmp_path / 'list.csv'), 'results_dir': str(results)}
    assert run_test(**values, baselines='best_gamma', skip_bad=True, result_dir=str(tmp_path / 'out')) == 0
    summary = read_summary(tmp_path / 'out')
    assert list(summary['methods'])[-1] == 'gamma 0.50 (best here)'
    assert summary['photos'] == 3
    assert len(summary['skipped']) == 2


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_a_bad_result_folder_ends_the_run_at_once(make_pairs, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(evaluate, 'score_pair', None)  # would fail
    (tmp_path / 'file').write_text('')
    out = tmp_path / 'file' if kind == 'file' else tmp_path / 'file' / 'out'
    with pytest.raises(OSError, match='file'):
        run_test(checkpoints_file='', dataset_dir=make_pairs(2), result_dir=str(out))


def test_tall_photos_fit_on_the_sheet():
    tall = np.zeros((900, 3, 3), np.uint8)
    row = contact_sheet.draw_row('best: café.png', [tall] * 3, cell=300)
    assert row.shape == (620, 900, 3)
    assert row[20:, :149].min() == 255  # 2 of 300 pixels are its width


def test_pictures_that_cannot_be_drawn_leave_the_table(make_pairs, tmp_path, monkeypatch, capsys):
    def fail(caption, photos, cell):
        raise cv2.error('too large')

    monkeypatch.setattr(evaluate, 'draw_row', fail)
    assert run_test(checkpoints_file='', dataset_dir=make_pairs(2), result_dir=str(tmp_path / 'out')) == 0
    printed = capsys.readouterr()
    assert '| unprocessed input |' in printed.out
    assert 'too large' in printed.err
    assert read_summary(tmp_path / 'out')['photos'] == 2


def test_report_says_how_results_differ_from_their_targets(make_pairs, tmp_path, capsys):
    folder = make_pairs(2)
    values = {'checkpoints_file': '', 'dataset_dir': folder, 'result_dir': str(tmp_path / 'out')}
    run_test(**values)
    printed = capsys.readouterr().out
    found = read_summary(tmp_path / 'out')['methods']['unprocessed input']['appearance']
    photos = [read_photo(f'{folder}/{side}/p{i}.png') for side in ('input', 'target') for i in (0, 1)]
    expected = np.array([measure(photo) for photo in photos]).reshape(2, 2, 5).mean(axis=1)
    numbers = list(found)[:5]
    np.testing.assert_allclose([[found[name][side] for name in numbers] for side in ('result', 'target')], expected)
    labs = [appearance.to_lab(photo) for photo in photos]
    hue = np.mean([appearance.hue_error(*pair) for pair in zip(labs[:2], labs[2:], strict=True)])
    assert found['hue_to_target']['result'] == pytest.approx(hue)
    assert found['hue_to_input']['result'] == found['blown']['result'] == 0
    assert f'unprocessed input: {report.describe_appearance(found)}' in printed
    assert 'sd L' not in printed
    run_test(**values, appearance=True)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith('| target |'))
    assert row.split(' | ')[-8:-3] == [f'{value:.1f}' for value in expected[1]]
    row = next(line for line in lines if line.startswith('| unprocessed input |'))
    assert row.split(' | ')[-3:] == [f'{hue:.1f}', '0.0', '0.0 |']


@pytest.mark.parametrize('kind', ['folder', 'list'])
def test_photos_without_targets_are_scored_for_faults(checkpoint, make_pairs, tmp_path, capsys, kind):
    folder = f'{make_pairs(4)}/input'
    photos = folder
    if kind == 'list':
        photos = str(tmp_path / 'dark.csv')
        rows = ''.join(f'{name}\n' for name in ('data/input/p0.png', 'data/input/p2.png', 'data/input/p0.png'))
        (tmp_path / 'dark.csv').write_text(f'input\n{rows}')
    assert run_test(checkpoints_file=checkpoint, photos=photos, result_dir=str(tmp_path / 'out')) == 0
    assert '| unprocessed input |' in capsys.readouterr().out
    summary = read_summary(tmp_path / 'out')
    assert summary['photos'] == {'folder': 4, 'list': 2}[kind]
    found = summary['methods']['run_best']['appearance']
    assert list(found)[-3:] == ['veil', 'hue_to_input', 'blown']
    assert set(found['veil']) == {'result'}
    assert read_photo(str(tmp_path / 'out' / 'extremes.jpg')).shape[1] == 600


EVAL15 = (1, 22, 23, 55, 79, 111, 146, 179, 493, 547, 665, 669, 748, 778, 780)


def make_eval15(make_pairs):
    """A folder of LOL's layout with made-up photos under eval15's names."""
    folder = make_pairs(15, names=('eval15/low', 'eval15/high'))
    for i, number in enumerate(EVAL15):
        for side in ('low', 'high'):
            os.rename(f'{folder}/eval15/{side}/p{i}.png', f'{folder}/eval15/{side}/{number}.png')
    return folder


@pytest.mark.parametrize('gt_mean', [False, True])
def test_lol_is_eval15_at_its_own_size(make_pairs, tmp_path, gt_mean):
    folder = make_eval15(make_pairs)
    make_pairs(3, names=('our485/low', 'our485/high'))
    values = {'checkpoints_file': '', 'protocol': 'lol', 'gt_mean': gt_mean}
    assert run_test(**values, dataset_dir=folder, result_dir=str(tmp_path / 'out')) == 0
    summary = read_summary(tmp_path / 'out')
    assert summary['photos'] == 15
    assert summary['protocol'].startswith('protocol lol (LOL v1, our485 -> eval15), 8-bit RGB at own size')
    assert ('GT-MEAN' in summary['protocol']) == gt_mean
    pairs = lists.find_pairs(f'{folder}/eval15')
    lists.write_pairs(str(tmp_path / 'list.csv'), pairs)
    assert run_test(**values, pairs_file=str(tmp_path / 'list.csv'), result_dir=str(tmp_path / 'same')) == 0
    assert read_summary(tmp_path / 'same')['methods'] == summary['methods']


def test_lol_on_other_photos_gets_another_label(make_pairs, tmp_path):
    lists.write_pairs(str(tmp_path / 'list.csv'), lists.find_pairs(make_pairs(15)))
    values = {'checkpoints_file': '', 'protocol': 'lol', 'metrics': 'psnr'}
    assert run_test(**values, pairs_file=str(tmp_path / 'list.csv'), result_dir=str(tmp_path / 'out')) == 0
    text = (tmp_path / 'out' / 'table.md').read_text()
    assert 'like lol, but on 15 pairs that are not by name its 15, NOT COMPARABLE' in text
    assert 'our485' not in text
    with pytest.raises(FileNotFoundError, match=r'dataset_dir: expected the folder of LOL v1.*with eval15/ in it'):
        run_test(checkpoints_file='', protocol='lol', dataset_dir=str(tmp_path / 'data'))


def test_papers_split_says_how_many_of_500(make_pairs, tmp_path):
    """README's command for another system's results, on a made-up FiveK of twelve photos."""
    folder = make_pairs(12)
    for i in range(12):
        for side in ('input', 'target'):
            os.rename(f'{folder}/{side}/p{i}.png', f'{folder}/{side}/a{4495 + i}-IMG.png')
    values = {'checkpoints_file': '', 'results_dir': f'{folder}/target', 'dataset_dir': folder, 'metrics': 'psnr'}
    assert run_test(**values, split='paper', result_dir=str(tmp_path / 'out')) == 0
    summary = read_summary(tmp_path / 'out')
    assert (summary['pairs'], summary['photos']) == ('data_paper_6_of_500', 6)
    assert summary['methods']['target']['psnr']['mean'] == 'inf'
    assert "NOT THE PAPER'S TEST SET" in (tmp_path / 'out' / 'table.md').read_text()


def test_photos_paired_with_themselves_are_said_to_be(make_pairs, tmp_path):
    pairs = lists.find_pairs(make_pairs(4))
    lists.write_pairs(str(tmp_path / 'list.csv'), [*pairs[:3], (pairs[3][1], pairs[3][1])])
    values = {'checkpoints_file': '', 'pairs_file': str(tmp_path / 'list.csv'), 'metrics': 'psnr'}
    assert run_test(**values, result_dir=str(tmp_path / 'out')) == 0
    assert '1 of 4 pairs are a photo with itself' in (tmp_path / 'out' / 'table.md').read_text()


@pytest.mark.parametrize('values', [{}, {'checkpoints_file': 'general'}])
def test_default_run_scores_the_sample_photos(tmp_path, values):
    assert run_test(metrics='psnr', result_dir=str(tmp_path), **values) == 0
    summary = read_summary(tmp_path)
    assert (summary['pairs'], summary['photos']) == ('sample_imgs_pairs', 5)
    assert (
        summary['methods']['general_best']['psnr']['mean'] > summary['methods']['unprocessed input']['psnr']['mean'] + 5
    )
    assert {'commit', 'processor', 'cores', 'torch', 'numpy', 'cv2'} <= set(summary['versions'])


def test_pairs_that_are_nowhere_are_one_line(checkpoint, make_pairs, tmp_path):
    pairs = [(f'gone/input/{i}.png', f'gone/target/{i}.png') for i in range(30)]
    lists.write_pairs(str(tmp_path / 'run' / 'valid_pairs.csv'), pairs)
    with pytest.raises(
        FileNotFoundError, match=r'found none of 30: docs/results.md says where .*--pairs_file'
    ) as caught:
        run_test(checkpoints_file=checkpoint)
    assert len(str(caught.value).splitlines()) == 1


def test_two_ranks_give_the_result_of_one(checkpoint, make_pairs, tmp_path):
    options = ['test.py', '--checkpoints_file', checkpoint, '--dataset_dir', make_pairs(5), '--device', 'cpu']
    for name, launcher in (
        ('one', [sys.executable]),
        ('two', two_ranks()),
    ):
        done = subprocess.run(
            [*launcher, *options, '--result_dir', tmp_path / name],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('| run_best |') == 1
    assert (tmp_path / 'one' / 'per_photo.csv').read_text() == (tmp_path / 'two' / 'per_photo.csv').read_text()
    one, two = (json.loads((tmp_path / name / 'summary.json').read_text())['methods'] for name in ('one', 'two'))
    assert one == two


def test_known_numbers_of_eval15(shared, tmp_path):
    """Unprocessed 7.77 / 0.191 and the predecessor's weights 12.90 / 0.465, as shared/data/README.md has them."""
    run_test(
        checkpoints_file=f'{shared}/reference/predecessor_fivek.pth',
        pairs_file=f'{shared}/data/lol/eval15.csv',
        metrics='psnr,ssim',
        result_dir=str(tmp_path),
    )
    found = json.loads((tmp_path / 'summary.json').read_text())['methods']
    for method, psnr, ssim in (('unprocessed input', 7.77, 0.191), ('reference_predecessor_fivek', 12.90, 0.465)):
        assert found[method]['psnr']['mean'] == pytest.approx(psnr, abs=0.005)
        assert found[method]['ssim']['mean'] == pytest.approx(ssim, abs=0.0006)
