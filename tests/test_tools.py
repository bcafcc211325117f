"""What the measuring programs compute; no times are tested."""

import numpy as np
import pytest

from photos.picture import read_photo
from tools import benchmark, compare_systems


def test_median_is_of_the_runs_after_the_warm_up():
    clock = iter([0] * 4 + [t for took in (1, 2, 3, 4, 8, 6) for t in (0, took)])  # seconds
    order = []
    sides = [lambda: order.append('a'), lambda: order.append('b')]
    assert benchmark.time_in_turn(sides, 3, lambda: next(clock)) == [3, 4]
    assert order == ['a', 'b'] * 4


def test_benchmarks_sides_run_and_leave_results(tmp_path):
    for fused in (True, False):
        benchmark.training_step('hdrnet', fused, 2, side=16)()
    source, ours, theirs = (tmp_path / name for name in ('in', 'ours', 'theirs'))
    theirs.mkdir()
    benchmark.write_photos(0.002, 2, str(source))
    benchmark.enhance_folder(benchmark.inference.opt.checkpoints_file, str(source), str(ours))
    benchmark.copy_folder(str(source), str(theirs))
    for folder in (source, ours, theirs):
        assert sorted(path.name for path in folder.glob('[!.]*')) == ['0.jpg', '1.jpg']


@pytest.mark.parametrize('name', compare_systems.BUILTIN)
def test_builtin_systems_give_a_photo_of_the_same_size(name):
    photo = benchmark.noisy_photo(0.002)
    result = compare_systems.load_system(name, 'general')(photo.copy())
    assert result.shape == photo.shape
    assert result.dtype == np.uint8
    assert (result != photo).any()


def test_systems_are_named_functions_and_commands():
    found = compare_systems.split_systems('SCI = wrap:sci; other=python x.py -i {input} -o {output} --gamma=2')
    assert found == {'SCI': 'wrap:sci', 'other': 'python x.py -i {input} -o {output} --gamma=2'}
    for bad in ('wrap:sci', 'a=', 'a=x:y;a=x:z', 'ours=x:y'):
        with pytest.raises(ValueError, match='systems: expected NAME=MODULE:FUNCTION or NAME=COMMAND'):
            compare_systems.split_systems(bad)
    with pytest.raises(ValueError, match='expected a function sci in a module no_such_module'):
        compare_systems.load_system('no_such_module:sci', None)


def test_a_command_gets_the_photo_and_must_write_a_result(tmp_path):
    photo = benchmark.noisy_photo(0.002)
    for name in ('good', 'broken', 'nothing'):
        (tmp_path / name).mkdir()
    assert compare_systems.run_command('cp {input} {output_dir}/x.bmp', photo, str(tmp_path / 'good'), 1) > 0
    np.testing.assert_array_equal(read_photo(str(tmp_path / 'good' / 'output' / 'x.bmp')), photo)
    with pytest.raises(ValueError, match='exit status 3: broken'):
        compare_systems.run_command('echo broken >&2; exit 3; {input}', photo, str(tmp_path / 'broken'), 1)
    with pytest.raises(ValueError, match='it wrote nothing'):
        compare_systems.run_command('true {input}', photo, str(tmp_path / 'nothing'), 1)


def test_a_system_that_gives_no_photo_is_refused(monkeypatch):
    photo = benchmark.noisy_photo(0.002)
    monkeypatch.setattr(compare_systems, 'prepare', lambda *settings: (photo, lambda photo: photo / 255))
    with pytest.raises(ValueError, match=r'result: expected \(.*\) uint8, got .* float64'):
        compare_systems.time_once('wrap:sci', compare_systems.opt)


def test_a_system_that_fails_keeps_its_row():
    row = compare_systems.write_row({'system': 'RetinexNet', 'failed': 'out of memory'})
    assert row == '| RetinexNet | failed: out of memory | | |'
    row = compare_systems.write_row({'system': 'SCI', 'ratio': 55.21, 'seconds': 1.5, 'peak_gb': 3.21})
    assert row == '| SCI | 55.2 | 1.500 | 3.2 GB |'
