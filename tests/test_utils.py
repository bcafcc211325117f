import os
import pickle
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import utils
from model import ARCHITECTURES, build_network
from photos import contact_sheet, levels
from photos.picture import read_photo, write_photo
from runs.checkpoint import load_network, save_checkpoint


def test_overrides_take_the_type_of_the_default():
    opt = SimpleNamespace(lr=0.1, name='a', flag=True, count=1)
    given = utils.parse_overrides(opt, {}, __file__, argv=['--lr', '1', '--no-flag', '--count', '3'])
    assert given == {'lr', 'flag', 'count'}
    assert vars(opt) == {'lr': 1.0, 'name': 'a', 'flag': False, 'count': 3}
    for bad in (['--typo', '1'], ['--count', '1.5']):
        with pytest.raises(SystemExit):
            utils.parse_overrides(opt, {}, __file__, argv=bad)


def test_paths_are_taken_without_their_option(capsys):
    def parse(*argv):
        opt = SimpleNamespace(images_dir='sample', flag=False)
        utils.parse_overrides(opt, {}, __file__, positional='images_dir', argv=list(argv))
        return opt.images_dir, opt.flag

    assert parse() == ('sample', False)
    assert parse('--images_dir', 'a', '--flag') == ('a', True)
    assert parse('a', '--flag') == ('a', True)
    assert parse('a.jpg', '--flag', 'b c.jpg') == (['a.jpg', 'b c.jpg'], True)
    with pytest.raises(SystemExit):
        parse('a', '--images_dir', 'b')
    assert 'expected --images_dir or paths without it, got both' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('error', 'status', 'said'),
    [
        (KeyboardInterrupt(), 130, 'stopped'),
        (OSError(28, 'No space left on device', 'a.jpg'), 'error: a.jpg: No space left on device', ''),
        (ValueError('lr: expected above 0'), 'error: lr: expected above 0', ''),
    ],
)
def test_script_ends_with_one_line_and_its_status(capsys, error, status, said):
    def main(opt):
        raise error

    with pytest.raises(SystemExit) as ended:
        utils.run_script(main, SimpleNamespace())
    assert ended.value.code == status
    assert capsys.readouterr().err.strip() == said


def test_help_prints_the_comments_of_the_option_block(tmp_path, capsys):
    script = tmp_path / 'script.py'
    block = "opt = SimpleNamespace(\n    # network\n    lr=0.1,  # Adam, 50 % of it\n    name='',\n)\n"
    script.write_text(f'"""Do a thing."""\n\n{block}')
    opt = SimpleNamespace(lr=0.1, name='')
    with pytest.raises(SystemExit):
        utils.parse_overrides(opt, {'lr': (0.0, None)}, str(script), argv=['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert 'Do a thing.' in text
    assert 'network: --lr LR Adam, 50 % of it; expected 0 or more; default 0.1' in text


def test_rules_name_the_architectures_that_there_are():
    assert utils.NETWORK_RULES['arch'] == list(ARCHITECTURES)


def test_version_is_that_of_the_citation(capsys):
    with pytest.raises(SystemExit):
        utils.parse_overrides(SimpleNamespace(), {}, utils.__file__, argv=['--version'])
    printed = capsys.readouterr().out.split()[-1]
    with open(os.path.join(os.path.dirname(utils.__file__), 'CITATION.cff'), encoding='utf-8') as file:
        assert f'version: {printed}' in file.read().splitlines()


@pytest.mark.parametrize(
    ('rule', 'text', 'inside', 'outside'),
    [
        ((1.0, None), '1 or more', (1, 2.5), (0.9, -3, float('nan'), float('inf'), '1', True)),
        ((1, None), 'a whole number, 1 or more', (1, 7), (0, 2.5, True)),
        ((0.0, 1.0), '0 to 1', (0, 1, 0.5), (-0.1, 1.1)),
        ([-1.0, (0.0, None)], '-1 or at least 0', (-1, 0, 3), (-0.5, -2)),
        (['', 'bf16', 'fp16'], "one of '', bf16, fp16", ('', 'bf16'), ('bf', 0)),
        (bool, 'True or False', (True, False), ('False', 0)),
    ],
)
def test_option_that_breaks_its_rule_is_refused_in_one_form(rule, text, inside, outside):
    for value in inside:
        utils.check_options(SimpleNamespace(lr=value), {'lr': rule})
    for value in outside:
        with pytest.raises(ValueError, match=f'^lr: expected {text}, got '):
            utils.check_options(SimpleNamespace(lr=value), {'lr': rule})


@pytest.mark.parametrize('extension', ['.png', '.tif'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_photo_comes_back_as_it_was_written(tmp_path, extension, dtype):
    photo = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7, 3), dtype=dtype, endpoint=True)
    path = str(tmp_path / f'p{extension}')
    write_photo(path, photo)
    np.testing.assert_array_equal(read_photo(path), photo)
    assert [p.name for p in tmp_path.iterdir()] == [f'p{extension}']


def test_photos_are_rgb(tmp_path):
    path = str(tmp_path / 'red.png')
    cv2.imwrite(path, np.full((4, 4, 3), (0, 0, 255), np.uint8))  # OpenCV: BGR
    assert read_photo(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize('data', [b'', b'no photo', b'\xff\xd8\xff\xe0garbage'])
def test_unreadable_photo_is_named(tmp_path, data):
    path = tmp_path / 'bad.jpg'
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'bad.jpg: expected a photo'):
        read_photo(str(path))


def test_tensor_and_photo_are_inverse():
    for dtype in (np.uint8, np.uint16):
        photo = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7, 3), dtype=dtype, endpoint=True)
        tensor = levels.to_tensor(photo)
        assert tensor.shape == (1, 3, 5, 7)
        np.testing.assert_array_equal(levels.to_photo(tensor, dtype), photo)


def test_to_photo_rounds_to_nearest_or_down():
    tensor = torch.tensor([0.6, 100.4, 300.0]).view(3, 1, 1) / 255
    assert levels.to_photo(tensor).tolist() == [[[1, 100, 255]]]
    assert levels.to_photo(tensor, round_down=True).tolist() == [[[0, 100, 255]]]


class Bomb:
    """Unpickles by running code."""

    def __reduce__(self):
        return open, ('bomb_went_off', 'w')


@pytest.mark.parametrize('kind', ['code', 'text', 'truncated', 'other', 'misfit', 'empty'])
def test_bad_checkpoint_is_refused_in_one_line(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'bad.pth'
    good = {'arch': 'hdrnet', 'model': build_network('hdrnet').state_dict(), 'opt': {}}
    if kind == 'code':
        path.write_bytes(pickle.dumps({'model': Bomb()}))
    elif kind == 'truncated':
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == 'other':
        torch.save({'weights': torch.zeros(3)}, path)
    elif kind == 'misfit':
        torch.save({**good, 'arch': 'deepupe'}, path)
    else:
        path.write_bytes(b'hello' if kind == 'text' else b'')
    with pytest.raises(ValueError, match=r'bad.pth: ') as error:
        load_network(str(path))
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'bomb_went_off').exists()


def test_missing_checkpoint_is_named():
    with pytest.raises(FileNotFoundError, match=r'none.pth: expected a checkpoint'):
        load_network('none.pth')


@pytest.mark.parametrize('grid', [(8, 0), (4, 16)])
def test_checkpoint_comes_back_as_the_same_network(tmp_path, grid):
    luma_bins, spatial_bin = grid
    network = build_network('deepupe', luma_bins=luma_bins, spatial_bin=spatial_bin).eval()
    path = str(tmp_path / 'ours.pth')
    options = {'luma_bins': luma_bins, 'spatial_bin': spatial_bin}
    save_checkpoint(path, {'arch': 'deepupe', 'model': network.state_dict(), 'opt': options})
    loaded, _ = load_network(path)
    images = torch.rand(1, 3, 256, 256), torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(*images), network(*images))
    assert not loaded.training


def predecessor_state(network):
    """The state dict under the predecessor's names, as if it had been trained on the channels as they come."""
    names = {
        'splat.': 'coeffs.splat_features.',
        'global_conv.': 'coeffs.global_features_conv.',
        'global_fc.': 'coeffs.global_features_fc.',
        'local.': 'coeffs.local_features.',
        'predict.': 'coeffs.conv_out.',
        'guide.hidden.': 'guide.conv1.',
        'guide.output.': 'guide.conv2.',
    }
    state = {}
    for name, value in network.state_dict().items():
        prefix = next(ours for ours in names if name.startswith(ours))
        theirs = names[prefix] + name[len(prefix) :].replace('norm.', 'bn.').replace('linear.', 'fc.')
        state[theirs] = value
    return state


def test_predecessors_weights_see_bgr(tmp_path):
    """Its network on BGR equals ours, converted, on RGB."""
    torch.manual_seed(0)
    network = build_network('hdrnet').eval()
    torch.save(predecessor_state(network), tmp_path / 'theirs.pth')
    ours, checkpoint = load_network(str(tmp_path / 'theirs.pth'))
    lowres, fullres = torch.rand(1, 3, 256, 256), torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        theirs = network(lowres.flip(1), fullres.flip(1)).flip(1)
        torch.testing.assert_close(ours(lowres, fullres), theirs, atol=1e-5, rtol=1e-5)  # sums in another order
    assert checkpoint['arch'] == 'hdrnet'


def test_sheet_holds_sixteen_pictures(tmp_path):
    path = str(tmp_path / 'sheet.png')
    contact_sheet.save_sheet(path, torch.linspace(0, 1, 16).view(16, 1, 1, 1).expand(16, 3, 20, 40), cell=10)
    sheet = cv2.imread(path)
    assert sheet.shape == (20, 40, 3)
    assert sheet[::5, ::10, 0].flatten().tolist() == [round(i / 15 * 255) for i in range(16)]
