"""What the measuring programs compute; no times are tested."""

import pytest

from tools import benchmark


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
    benchmark.run_inference(benchmark.inference.opt.checkpoints_file, str(source), str(ours))
    benchmark.copy_folder(str(source), str(theirs))
    for folder in (source, ours, theirs):
        assert sorted(path.name for path in folder.glob('[!.]*')) == ['0.jpg', '1.jpg']


def test_other_systems_are_functions_that_give_a_photo(tmp_path, monkeypatch):
    photo = benchmark.noisy_photo(0.002)
    monkeypatch.setattr(benchmark, 'noisy_photo', lambda megapixels: photo)
    (tmp_path / 'my_wrappers.py').write_text('sci = lambda photo: photo\nbroken = lambda photo: photo / 255\n')
    monkeypatch.syspath_prepend(tmp_path)
    for system in (None, 'my_wrappers:sci'):
        benchmark.run_system(system, 'general')
    with pytest.raises(ValueError, match=r'my_wrappers:broken: expected \(.*\) uint8 as its result, got .* float64'):
        benchmark.run_system('my_wrappers:broken', 'general')
    for system in ('no_such_module:sci', 'my_wrappers:no_such_function', 'my_wrappers', ''):
        with pytest.raises(ValueError, match='systems: expected NAME=MODULE:FUNCTION'):
            benchmark.run_system(system, 'general')
    assert benchmark.equalize(photo).shape == photo.shape
