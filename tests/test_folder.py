"""Which photos are found, and what their results are called; files that are written whole."""

import ntpath
import os
from collections import Counter

import pytest

from photos import folder
from photos.folder import (
    RECORD,
    Found,
    find_photos,
    is_due,
    plan_jobs,
    read_record,
    remember,
    split_pattern,
)
from system import files


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'')


def below(found, root):
    return [os.path.relpath(path, root) for path in found.paths]


# ---------------------------------------------------------------------------------------------------------- found


def test_pattern_over_links_that_lead_round_gives_each_file_once(tmp_path):
    make(tmp_path, 'a/1.jpg', 'a/b/2.jpg', 'z/3.jpg', 'a/.hidden/4.jpg')
    for link, target in (('a/up', '..'), ('a/b/self', '.'), ('a/b/z', '../../z'), ('y', 'a')):
        os.symlink(target, tmp_path / link)
    found = find_photos(str(tmp_path / '**' / '*.jpg'), False, 'out')
    assert below(found, tmp_path) == ['a/1.jpg', 'a/b/2.jpg', 'z/3.jpg']


def test_links_to_folders_outside_are_followed_by_patterns_and_counted_otherwise(tmp_path):
    make(tmp_path, 'in/1.jpg', 'out/2.jpg')
    os.symlink(tmp_path / 'out', tmp_path / 'in' / 'link')
    assert below(find_photos(f'{tmp_path}/in/**/*.jpg', False, 'x'), tmp_path) == ['in/1.jpg', 'in/link/2.jpg']
    found = find_photos(f'{tmp_path}/in', True, 'x')
    assert below(found, tmp_path) == ['in/1.jpg']
    assert found.others['linked folder'] == 1


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [
        ('*.jpg', ['1.jpg']),
        ('[ab]/*.jpg', ['a/2.jpg', 'b/3.jpg']),
        ('a/**', ['a/2.jpg', 'a/deep/4.jpg']),
        ('**/4.*', ['a/deep/4.jpg']),
        ('*/*/?.jpg', ['a/deep/4.jpg']),
        ('[x] y/*.jpg', ['[x] y/5.jpg']),
    ],
)
def test_patterns_mean_what_they_mean_to_a_shell(tmp_path, monkeypatch, pattern, expected):
    make(tmp_path, '1.jpg', 'a/2.jpg', 'b/3.jpg', 'a/deep/4.jpg', '[x] y/5.jpg', '.6.jpg')
    monkeypatch.chdir(tmp_path)
    assert find_photos(pattern, False, 'out').paths == expected


def test_patterns_of_windows_are_split_at_its_separators():
    assert split_pattern(r'D:\photos\2024\IMG_*.jpg', ntpath) == (r'D:\photos\2024', ['IMG_*.jpg'])
    assert split_pattern(r'photos\**\a?.jpg', ntpath) == ('photos', ['**', 'a?.jpg'])


def test_several_paths_are_mirrored_below_the_folder_that_they_share(tmp_path):
    make(tmp_path, 'a/1.jpg', 'a/2.jpg', 'b/c/1.jpg', 'b/note.txt')
    found = find_photos([f'{tmp_path}/a/1.jpg', f'{tmp_path}/a/2.jpg'], False, 'out')
    assert [job.source for job in plan_jobs(found, {})] == ['1.jpg', '2.jpg']
    found = find_photos([f'{tmp_path}/a', f'{tmp_path}/b/c/*.jpg'], False, 'out')
    assert sorted(job.source for job in plan_jobs(found, {})) == ['a/1.jpg', 'a/2.jpg', 'b/c/1.jpg']


def test_videos_are_found_wherever_their_path_starts():
    assert folder.is_video('../clips/a.MP4')
    assert not folder.is_video('clips/.a.mp4')


def test_files_left_out_are_counted_by_kind(tmp_path):
    make(tmp_path, '1.jpg', 'a.txt', 'b.TXT', 'README', '.hidden.jpg')
    assert find_photos(str(tmp_path), False, 'out').others == {'.txt': 2, 'without extension': 1, 'hidden': 1}


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    make(tmp_path, '1.jpg', 'closed/2.jpg')
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith('closed'):
            raise PermissionError(13, 'Permission denied', path)
        return real(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    found = find_photos(str(tmp_path), True, 'out')
    assert found.problems == [f'{tmp_path}/closed: Permission denied']
    assert below(found, tmp_path) == ['1.jpg']


# ---------------------------------------------------------------------------------------------------------- names

NAMES = ['a.jpg', 'a.JPG', 'a.jpeg', 'a.png', 'a.PNG', 'a.bmp', 'a.nef', 'a.tif', 'a_png.jpg', 'a_png.png', 'a_jpg.jpg']
NAMES += ['a_png_jpg.jpg', 'a_nef.tif', 'a_nef_tif.tif', 'a_bmp.tif', 'contact_sheet.jpg', 'contact_sheet_jpg.jpg']
NAMES += [
    'illumination_/a.png',
    'illumination.png',
    'b/illumination/a.png',
    'b/a.png',
    '_.jpg',
    'sub/a.jpeg',
    'DSC_1.NEF',
]


def plan(names, record=None, results='out', **options):
    return plan_jobs(Found('in', [f'in/{name}' for name in names], Counter(), [], results), record or {}, **options)


def results_of(names, *args, **options):
    return {job.source: os.path.relpath(job.result, 'out') for job in plan(names, *args, **options)}


@pytest.mark.parametrize('format', ['', 'jpg', 'png', 'tif', 'jpeg'])
def test_no_two_photos_share_a_name_in_any_case(format):
    jobs = plan(NAMES, format=format, illuminations=True, extras=True)
    written = [path.lower() for job in jobs for path in job.written()] + [f'out/{folder.SHEET}']
    assert len(set(written)) == len(written) == 3 * len(NAMES) + 1
    assert not [job.problem for job in jobs if job.problem]


@pytest.mark.parametrize(
    ('names', 'format', 'expected'),
    [
        (['a.jpg'], '', ['a.jpg']),
        (['a.jpg', 'a.png'], '', ['a.jpg', 'a.png']),
        (['sub/a.jpeg'], 'jpg', ['sub/a.jpeg']),
        (['a.png', 'b.PNG'], 'jpg', ['a.jpg', 'b.jpg']),
        (['a.png', 'a.jpg'], 'jpg', ['a_png.jpg', 'a.jpg']),
        (['a.png', 'a.webp'], 'jpg', ['a.jpg', 'a_webp.jpg']),
        (['a.png', 'a.jpg', 'a_png.jpg'], 'jpg', ['a_png_2.jpg', 'a.jpg', 'a_png.jpg']),
        (['DSC_1.NEF', 'DSC_1.JPG'], '', ['DSC_1.tif', 'DSC_1.JPG']),
        (['DSC_1.NEF', 'DSC_1.JPG'], 'jpg', ['DSC_1_NEF.jpg', 'DSC_1.JPG']),
        (['a.PNG', 'a.png'], '', ['a.PNG', 'a_png.png']),
        (['Contact_Sheet.JPG'], '', ['Contact_Sheet_JPG.JPG']),
        (['a.mov'], 'jpg', ['a.mov']),
    ],
)
def test_names_of_results(names, format, expected):
    assert list(results_of(names, format=format).values()) == expected


def test_a_result_keeps_its_name_when_photos_are_added(tmp_path):
    first = plan(['a.png'], results=str(tmp_path), format='jpg')[0]
    make(tmp_path, 'a.jpg')
    remember(str(tmp_path), first, 'options')
    record = read_record(str(tmp_path))
    jobs = plan(['a.jpg', 'a.png'], record, str(tmp_path), format='jpg')
    assert [os.path.basename(job.result) for job in jobs] == ['a_jpg.jpg', 'a.jpg']
    os.remove(tmp_path / 'a.jpg')  # free again
    assert os.path.basename(plan(['a.jpg'], record, str(tmp_path))[0].result) == 'a.jpg'


def test_what_a_run_writes_replaces_no_original(tmp_path):
    make(tmp_path, 'illumination/a.jpg', 'illumination/a_jpg.png', 'sub/contact_sheet.jpg')
    found = find_photos(f'{tmp_path}/illumination', False, str(tmp_path))
    problems = [job.problem for job in plan_jobs(found, {}, illuminations=True)]
    assert problems[0] == f'{found.paths[0]}: its result would replace another file, {found.paths[1]}'
    found = find_photos([f'{tmp_path}/illumination', f'{tmp_path}/sub'], False, str(tmp_path / 'sub' / 'deep'))
    with pytest.raises(ValueError, match='contact sheet would replace the original'):
        plan_jobs(found._replace(results=str(tmp_path / 'sub')), {}, sheet=True)


def test_an_illumination_replaces_no_result():
    problems = [bool(job.problem) for job in plan(['a.jpg', 'illumination/a_jpg.png'], illuminations=True)]
    assert problems == [True, True]


# ------------------------------------------------------------------------------------------- where results go, record


def test_results_go_beside_the_photos_unless_told_otherwise(tmp_path):
    make(tmp_path, 'a/1.jpg', 'a/enhanced/1.jpg', 'b/2.jpg')
    assert find_photos(f'{tmp_path}/a').results == f'{tmp_path}/a/enhanced'
    assert below(find_photos(f'{tmp_path}/a', True), tmp_path) == ['a/1.jpg']
    assert find_photos(f'{tmp_path}/a/1.jpg').results == f'{tmp_path}/a/enhanced'
    assert find_photos([f'{tmp_path}/a', f'{tmp_path}/b']).results == f'{tmp_path}/enhanced'


@pytest.mark.parametrize('asked', [(['a.jpg', 'b.gif'], ''), (['a.jpg'], 'b.gif'), ('.', 'b.ico')])
def test_a_result_of_a_kind_that_is_not_written_is_refused(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.jpg').touch()
    with pytest.raises(ValueError, match=r'^b\.(gif|ico): expected a name that ends in one of \.jpg'):
        find_photos(asked[0], result=asked[1])
    assert find_photos('a.jpg', result='b.2').results == 'b.2'  # a folder


def test_one_photo_goes_to_one_file(tmp_path):
    make(tmp_path, '1.jpg', '2.jpg', 'dots.png/3.jpg')
    one, new = f'{tmp_path}/1.jpg', f'{tmp_path}/new.png'
    for found in (find_photos([one, new]), find_photos(one, result=new)):
        assert (found.paths, found.results, found.name) == ([one], str(tmp_path), 'new.png')
        assert plan_jobs(found, {})[0][1:3] == (one, new)  # another folder's 1.jpg is another photo
        with pytest.raises(ValueError, match='format: expected none beside a result that is named'):
            plan_jobs(found, {}, format='jpg')
    assert find_photos([one, f'{tmp_path}/2.jpg']).paths == [one, f'{tmp_path}/2.jpg']  # both there: two photos
    assert find_photos(one, result=f'{tmp_path}/dots.png').results == f'{tmp_path}/dots.png'  # a folder
    assert 'replace another file' in plan_jobs(find_photos(one, result=one), {})[0].problem
    with pytest.raises(ValueError, match='expected a folder, or one photo'):
        find_photos(str(tmp_path), result=new)


def test_earlier_results_are_left_out_unless_only_they_are_asked_for(tmp_path):
    make(tmp_path, '1.jpg', '2.jpg', 'out/sub/1.jpg', 'out/mine.jpg')
    remember(str(tmp_path), folder.Job('', '1.jpg', f'{tmp_path}/2.jpg'), '')
    remember(f'{tmp_path}/out', folder.Job('', 'sub/1.jpg', f'{tmp_path}/out/sub/1.jpg'), '')
    found = find_photos(str(tmp_path), True, 'elsewhere')
    assert below(found, tmp_path) == ['1.jpg', 'out/mine.jpg']
    assert +found.others == {'earlier result': 2}
    assert find_photos([f'{tmp_path}/1.jpg', f'{tmp_path}/2.jpg']).name == '2.jpg'  # made anew
    assert below(find_photos(f'{tmp_path}/out/sub', False, 'elsewhere'), tmp_path) == ['out/sub/1.jpg']


def test_a_result_is_due_again_for_other_options_only(tmp_path):
    job, results = folder.Job('in/1.jpg', '1.jpg', f'{tmp_path}/1.jpg'), str(tmp_path)

    def due(options, job=job):
        return is_due(results, read_record(results), job, options)

    assert due('a')
    make(tmp_path, '1.jpg')
    assert not due('a')  # made before there were records
    remember(results, job, 'a')
    assert (due('a'), due('b'), due('a', job._replace(illumination=f'{tmp_path}/light.png'))) == (False, True, True)
    remember(results, job, 'b')
    assert (due('a'), due('b')) == (True, False)
    assert due('b', job._replace(source='other/1.jpg'))
    (tmp_path / '1.jpg').write_text('edited by hand')
    assert not due('a')


def test_a_damaged_record_does_no_harm(tmp_path):
    make(tmp_path, '1.jpg', os.fsdecode(b'\xe9.jpg'))
    for name in os.listdir(tmp_path):
        remember(str(tmp_path), folder.Job('', name, f'{tmp_path}/{name}'), 'a')
    whole = (tmp_path / RECORD).read_bytes()
    (tmp_path / RECORD).write_bytes(b'5\n[1, 2]\n[[], 1, 2, 3, 4]\n\xff{\n' + whole + whole[:20])
    assert {name for name in read_record(str(tmp_path)) if isinstance(name, str)} == {'1.jpg', os.fsdecode(b'\xe9.jpg')}


# ---------------------------------------------------------------------------------------------- files written whole


def test_file_with_the_longest_name_is_written(tmp_path):
    path = tmp_path / ('ü' * 125 + '.txt')  # 254 of 255 bytes
    files.save_text(str(path), 'text')
    assert path.read_text() == 'text'
    assert os.listdir(tmp_path) == [path.name]


def test_stale_parts_go_and_what_is_being_written_stays(tmp_path):
    """Whatever process or container of this machine they are of: the kernel's locks tell, no process numbers."""
    make(tmp_path, '.0123456789abcdef.part', 'mine.part', '.0123456789abcdef.part.jpg')

    def save(file):
        files.remove_stale_parts({str(tmp_path), str(tmp_path / 'nowhere')})
        file.write(b'whole')

    files.save_whole(save, str(tmp_path / 'a.jpg'))
    assert (tmp_path / 'a.jpg').read_bytes() == b'whole'
    assert sorted(os.listdir(tmp_path)) == ['.0123456789abcdef.part.jpg', 'a.jpg', 'mine.part']


def test_part_that_was_taken_for_stale_before_its_lock_is_made_anew(tmp_path, monkeypatch):
    real, taken = files.fcntl.flock, []

    def flock(file, operation):
        if not taken:
            taken.append(file.name)
            os.remove(file.name)
        real(file, operation)

    monkeypatch.setattr(files.fcntl, 'flock', flock)
    files.save_text(str(tmp_path / 'a.txt'), 'text')
    assert (tmp_path / 'a.txt').read_text() == 'text'


def test_failed_write_leaves_the_old_file_and_names_it(tmp_path):
    (tmp_path / 'a.txt').write_text('old')

    def save(file):
        file.write(b'new')
        raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match='No space') as error:
        files.save_whole(save, str(tmp_path / 'a.txt'))
    assert files.error_line(error.value) == f'{tmp_path}/a.txt: No space left on device'
    assert (tmp_path / 'a.txt').read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.txt']


def test_files_are_written_whole_where_there_are_no_locks(tmp_path, monkeypatch):
    """As on Windows, which removes no open file."""
    monkeypatch.setattr(files, 'fcntl', None)
    files.save_text(str(tmp_path / 'a.txt'), 'text')
    assert (tmp_path / 'a.txt').read_text() == 'text'
    make(tmp_path, '.0123456789abcdef.part')
    files.remove_stale_parts([str(tmp_path)])
    assert os.listdir(tmp_path) == ['a.txt']
