import hashlib
import os

import cv2
import numpy as np
import pytest
import torch

import pipeline
from pairs import lists
from tests import train_options


@pytest.mark.parametrize('layout', lists.LAYOUTS)
def test_pairs_match_by_stem_whatever_the_extension(make_pairs, layout):
    pairs = lists.find_pairs(make_pairs(3, names=layout, extensions=('.PNG', '.jpg')))
    assert [tuple(os.path.basename(path) for path in pair) for pair in pairs] == [
        (f'p{i}.PNG', f'p{i}.jpg') for i in range(3)
    ]


def test_lol_v2_pairs_match_without_their_prefixes(make_pairs, tmp_path):
    make_pairs(2, names=('Low', 'Normal'))
    for name, prefix in (('Low', 'low'), ('Normal', 'normal')):
        for i in range(2):
            os.rename(tmp_path / 'data' / name / f'p{i}.png', tmp_path / 'data' / name / f'{prefix}0000{i}.png')
    pairs = lists.find_pairs(str(tmp_path / 'data'))
    assert [os.path.basename(target) for _, target in pairs] == ['normal00000.png', 'normal00001.png']


def test_sice_gives_the_darker_half_of_each_scene(make_pairs, tmp_path):
    for scene in ('1', '2', '10'):
        make_pairs(5, names=(f'{scene}', 'Label'))
    for name in os.listdir(tmp_path / 'data' / 'Label'):
        os.remove(tmp_path / 'data' / 'Label' / name)
    for scene in ('1', '2', '10'):
        (tmp_path / 'data' / 'Label' / f'{scene}.PNG').write_bytes((tmp_path / 'data' / '1' / 'p0.png').read_bytes())
    found = [tuple(path.removeprefix(f'{tmp_path}/data/') for path in pair)
             for pair in lists.find_pairs(str(tmp_path / 'data'))]  # fmt: skip
    assert found[:3] == [('1/p0.png', 'Label/1.PNG'), ('1/p1.png', 'Label/1.PNG'), ('2/p0.png', 'Label/2.PNG')]
    assert len(found) == 6
    os.remove(tmp_path / 'data' / 'Label' / '2.PNG')
    with pytest.raises(ValueError, match='data/2: no 2 in Label'):
        lists.find_pairs(str(tmp_path / 'data'))


def test_names_match_whatever_their_unicode_form(make_pairs, tmp_path):
    folder = make_pairs(1)
    for name, stem in (('input', 'caf\u00e9'), ('target', 'cafe\u0301')):
        os.rename(tmp_path / 'data' / name / 'p0.png', tmp_path / 'data' / name / f'{stem}.png')
    assert len(lists.find_pairs(folder)) == 1


def test_a_folder_with_a_comma_can_be_given(make_pairs, tmp_path):
    os.rename(make_pairs(2), tmp_path / 'a,b')
    assert len(lists.find_good(str(tmp_path / 'a,b' / 'target'))) == 2
    assert [len(pairs) for pairs, _ in lists.mix_pairs(str(tmp_path / 'a,b'))] == [2]


def test_photos_too_small_to_validate_on_are_named(make_pairs):
    pairs = lists.find_pairs(make_pairs(2, size=(5, 5)))
    with pytest.raises(ValueError, match=r'p1.png: expected 7 x 7 pixels or more, got 5 x 5'):
        pipeline.load_pairs(pairs, least=7)


def test_uncached_photos_are_not_kept(make_pairs):
    photos = pipeline.load_pairs(lists.find_pairs(make_pairs(3)), cache='none')
    assert photos.cached == [None] * 3
    assert photos[2][0].shape == (40, 48, 3)


def test_simulated_validation_is_the_same_on_any_rank(make_pairs):
    pairs = [(target, target) for _, target in lists.find_pairs(make_pairs(4))]
    whole, share = (pipeline.load_pairs(pairs, positions) for positions in (None, range(1, 4, 2)))
    whole.seed = share.seed = 1
    for one, other in zip((whole[1], whole[3]), (share[0], share[1]), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_augmentation_deepupe_sees_the_middle(make_pairs):
    pairs = lists.find_pairs(make_pairs(2, size=(300, 400)))
    dataset = pipeline.PairDataset([(pairs, 1.0)], train_options(arch='deepupe', augment=False), lowres_mode='nearest')
    photo = dataset.photos[int(dataset.order[0])][0]
    assert np.array_equal(dataset[0][1], photo[22:278, 72:328])


def test_every_missing_partner_is_named(make_pairs):
    folder = make_pairs(4)
    os.remove(f'{folder}/input/p0.png')
    os.remove(f'{folder}/target/p2.png')
    with pytest.raises(ValueError, match=r'(?s)2 bad.*input/p2.png: no partner.*target/p0.png: no partner'):
        lists.find_pairs(folder)


def test_unknown_layout_names_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'with input/ and expertC_gt/, or low/.* found none of these'):
        lists.find_pairs(str(tmp_path))


def test_csv_paths_are_relative_to_its_folder(make_pairs, tmp_path):
    pairs = lists.find_pairs(make_pairs(3))
    lists.write_pairs(str(tmp_path / 'list.csv'), pairs)
    header, first = (tmp_path / 'list.csv').read_text().splitlines()[:2]
    assert header == 'input,target,input_sha256,target_sha256'
    assert first.startswith('data/input/p0.png,data/target/p0.png,')
    with open(pairs[0][0], 'rb') as file:
        assert first.split(',')[2] == hashlib.sha256(file.read()).hexdigest()[:16]
    assert [tuple(map(os.path.realpath, p)) for p in lists.read_pairs(str(tmp_path / 'list.csv'))] == [
        tuple(map(os.path.realpath, p)) for p in pairs
    ]


@pytest.mark.parametrize(
    ('text', 'message'),
    [('a,b\n1,2\n', 'expected the columns'), ('input,target\n', 'no pairs'), ('input,target\nx.png,\n', 'row 2 lacks')],
)
def test_bad_csv_is_refused(tmp_path, text, message):
    path = tmp_path / 'list.csv'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        lists.read_pairs(str(path))


@pytest.mark.parametrize(
    'text',
    [
        'Input,Target\na.png,b.png\n',
        'input, target\na.png, b.png\n',
        'input;target;note\r\na.png;b.png;\r\n',
        '\ufeffname\tTARGET\tINPUT\n1\t"b.png"\ta.png\n\n',
        'input,target\n"a.png", "b.png",,\n',
    ],
)
def test_lists_are_read_as_people_and_spreadsheets_write_them(tmp_path, text):
    path = tmp_path / 'list.csv'
    path.write_bytes(text.encode())
    assert lists.read_pairs(str(path)) == [(str(tmp_path / 'a.png'), str(tmp_path / 'b.png'))]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'input,target\na.png,b, c.png\n', 'row 2 has more cells .* needs quotes'),
        ('input,target\n\xe4.png,b.png\n'.encode('latin-1'), 'expected a CSV file in UTF-8'),
        (b'input,target\na.png\n', 'row 2 lacks input or target'),
        (b'', 'expected the columns input,target'),
        (b'input,target\n"' + b'x' * 200000 + b'",b\n', 'expected a CSV file .field larger'),
    ],
)
def test_errors_in_lists_name_the_file(tmp_path, content, message):
    path = tmp_path / 'list.csv'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'list.csv: {message}'):
        lists.read_pairs(str(path))


def test_all_bad_pairs_are_named_at_once(make_pairs):
    folder = make_pairs(4)
    cv2.imwrite(f'{folder}/target/p0.png', np.zeros((9, 9, 3), np.uint8))
    with open(f'{folder}/input/p1.png', 'wb') as file:
        file.write(b'no photo')
    os.remove(f'{folder}/target/p3.png')
    pairs = [(f'{folder}/input/p{i}.png', f'{folder}/target/p{i}.png') for i in range(4)]
    with pytest.raises(ValueError, match=r'3 bad') as error:
        pipeline.PairDataset([(pairs, 1.0)], train_options())
    message = str(error.value)
    assert 'p0.png: expected the size of its target' in message
    assert '48 x 40 and 9 x 9' in message
    assert 'input/p1.png: expected a photo' in message
    assert 'target/p3.png: No such file' in message


def test_split_is_seeded_and_complete():
    pairs = [(f'i{i}', f't{i}') for i in range(20)]
    train, valid = lists.split_pairs(pairs, 0.9, seed=1)
    assert (len(train), len(valid)) == (18, 2)
    assert sorted(train + valid) == sorted(pairs)
    assert lists.split_pairs(pairs, 0.9, seed=1) == (train, valid)
    assert lists.split_pairs(pairs, 0.9, seed=2) != (train, valid)


def test_weights_say_how_often_a_list_is_drawn(make_pairs):
    pairs = lists.find_pairs(make_pairs(4))
    dataset = pipeline.PairDataset([(pairs, 2.0), (pairs, 0.5)], train_options())
    counts = np.bincount(dataset.order, minlength=8)
    assert counts[:4].tolist() == [2, 2, 2, 2]
    assert sorted(counts[4:]) == [0, 0, 1, 1]


def test_mix_refuses_weights_that_do_not_fit(make_pairs, tmp_path):
    path = str(tmp_path / 'a.csv')
    lists.write_pairs(path, lists.find_pairs(make_pairs(2)))
    assert [weight for _, weight in lists.mix_pairs(f'{path},{path}', '1,0.5')] == [1.0, 0.5]
    for weights in ('1,2,3', '0,1', 'x,1', 'nan,1'):
        with pytest.raises(ValueError, match='train_weights: expected'):
            lists.mix_pairs(f'{path},{path}', weights)


@pytest.mark.parametrize(('arch', 'size'), [('hdrnet', 64), ('deepupe', 256)])
def test_batches_are_float_rgb_of_the_methods_sizes(make_pairs, arch, size):
    dataset = pipeline.PairDataset([(lists.find_pairs(make_pairs(2)), 1.0)], train_options(arch=arch, full_size=64))
    (positions, (lowres, fullres, target)) = next(iter(pipeline.Loader(dataset, 2)))
    assert list(positions) == [0, 1]
    assert lowres.shape == (2, 3, 256, 256)
    assert fullres.shape == target.shape == (2, 3, size, size)
    assert fullres.dtype == torch.float32
    assert 0 < fullres.max() <= 0.35 < target.max() <= 1
    if arch == 'deepupe':
        assert torch.equal(lowres, fullres)


def test_same_batches_whatever_the_threads_and_the_cache(make_pairs):
    pairs = lists.find_pairs(make_pairs(7))
    batches = []
    for workers, cache in ((0, 'ram'), (2, 'none'), (3, 'file')):
        dataset = pipeline.PairDataset([(pairs, 1.0)], train_options(full_size=32, cache=cache))
        dataset.set_epoch(3)
        batches.append(list(pipeline.Loader(dataset, 3, workers)))
        assert len(batches[-1]) == 2
    for plain, *others in zip(*batches, strict=True):
        for _, images in others:
            assert all(torch.equal(a, b) for a, b in zip(plain[1], images, strict=True))


def test_ranks_share_every_batch(make_pairs):
    dataset = pipeline.PairDataset([(lists.find_pairs(make_pairs(8)), 1.0)], train_options(full_size=32))
    whole = list(pipeline.Loader(dataset, 4))
    shares = [list(pipeline.Loader(dataset, 4, rank=rank, world=2)) for rank in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(batch[0]) == sorted([*parts[0][0], *parts[1][0]])
        assert torch.equal(batch[1][1][1::2], parts[1][1][1])
    with pytest.raises(ValueError, match='train_batch_size: expected a multiple of the 3 ranks, got 4'):
        pipeline.Loader(dataset, 4, world=3)


def test_sixteen_bit_pairs_keep_their_fractions(make_pairs):
    pairs = lists.find_pairs(make_pairs(2))
    deep = np.full((40, 48, 3), 30001, np.uint16)
    for path in pairs[0]:
        cv2.imwrite(path, deep)
    dataset = pipeline.PairDataset([(pairs, 1.0)], train_options(full_size=16, augment=False))
    _, (_, fullres, _) = next(iter(pipeline.Loader(dataset, 2)))
    assert min(abs(fullres[i] - 30001 / 65535).max() for i in (0, 1)) < 1e-6


def test_a_last_batch_is_kept_or_dropped(make_pairs):
    dataset = pipeline.PairDataset([(lists.find_pairs(make_pairs(7)), 1.0)], train_options(full_size=16))

    def sizes(batch_size, **values):
        loader = pipeline.Loader(dataset, batch_size, **values)
        found = [len(positions) for positions, _ in loader]
        assert len(loader) == len(found)
        return found

    assert sizes(4) == [4, 3]
    assert sizes(4, drop_last=True) == [4]
    assert sizes(6) == [6]  # BatchNorm cannot train on the one that is left
    assert sizes(2, world=2) == [1, 1, 1]


def test_epochs_differ_and_repeat_with_the_seed(make_pairs):
    pairs = lists.find_pairs(make_pairs(6))
    first, again = (pipeline.PairDataset([(pairs, 1.0)], train_options(full_size=32)) for _ in range(2))
    again.set_epoch(2)
    assert not all(np.array_equal(first[i][1], again[i][1]) for i in range(6))
    again.set_epoch(1)
    assert all(np.array_equal(first[i][1], again[i][1]) for i in range(6))


def test_identity_share_pairs_targets_with_themselves(make_pairs):
    pairs = lists.find_pairs(make_pairs(8))
    for share, expected in ((0.0, [0]), (0.5, range(1, 8)), (1.0, [8])):
        dataset = pipeline.PairDataset([(pairs, 1.0)], train_options(full_size=32, identity_share=share))
        assert sum(np.array_equal(photo, target) for _, photo, target in map(dataset.__getitem__, range(8))) in expected


def test_one_pair_is_too_few_to_train():
    with pytest.raises(ValueError, match='expected two or more pairs'):
        pipeline.Loader([0], 16)


def test_darkened_photos_keep_their_target(make_pairs):
    pairs = [(lists.find_pairs(make_pairs(4)), 1.0)]
    plain, dark = (pipeline.PairDataset(pairs, train_options(full_size=32, darken=share, augment=False))
                   for share in (0.0, 1.0))  # fmt: skip
    for position in range(4):
        (_, photo, target), (_, darker, same) = plain[position], dark[position]
        assert darker.mean() < 0.95 * photo.mean()
        np.testing.assert_array_equal(target, same)
