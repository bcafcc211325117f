"""Which photos are found, and what their results are called; files that are written whole."""

import ntpath
import os
from collections import Counter

import pytest

from photos import folder
from photos.folder import Found, find_photos, plan_jobs, result_name, split_pattern
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
    assert [result_name(os.path.relpath(path, found.root)) for path in found.paths] == ['1.jpg', '2.jpg']
    found = find_photos([f'{tmp_path}/a', f'{tmp_path}/b/c/*.jpg'], False, 'out')
    assert sorted(result_name(os.path.relpath(path, found.root)) for path in found.paths) == [
        'a/1.jpg', 'a/2.jpg', 'b/c/1.jpg',
    ]  # fmt: skip


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
NAMES += ['illumination/a.png', 'illumination_/a.png', 'illumination.png', 'b/illumination/a.png', 'b/a.png', '_.jpg']


def plan(names, **options):
    return plan_jobs(Found('in', [f'in/{name}' for name in names], Counter(), []), 'out', **options)


@pytest.mark.parametrize('format', ['', 'jpg', 'png', 'tif', 'jpeg'])
def test_no_two_photos_share_a_name(format):
    jobs = plan(NAMES, format=format, illuminations=True)
    written = [job.result for job in jobs] + [job.illumination for job in jobs] + [f'out/{folder.SHEET}']
    assert len(set(written)) == len(written)
    assert not [job.problem for job in jobs if job.problem]


@pytest.mark.parametrize('format', ['', 'jpg', 'tif'])
def test_a_name_does_not_depend_on_the_other_photos(format):
    together = plan(NAMES, format=format, illuminations=True)
    assert together == [job for name in NAMES for job in plan([name], format=format, illuminations=True)]


@pytest.mark.parametrize(
    ('name', 'format', 'expected'),
    [
        ('a.jpg', '', 'a.jpg'),
        ('sub/a.jpeg', 'jpg', 'sub/a.jpeg'),
        ('a.png', 'jpg', 'a_png.jpg'),
        ('a_png.jpg', 'jpg', 'a_png_jpg.jpg'),
        ('a_png.jpg', '', 'a_png.jpg'),
        ('IMG_1.jpg', 'jpg', 'IMG_1.jpg'),
        ('DSC_1.NEF', '', 'DSC_1_NEF.tif'),
        ('Contact_Sheet.JPG', '', 'Contact_Sheet_JPG.jpg'),
        ('illumination/a.png', '', 'illumination_/a.png'),
    ],
)
def test_names_of_results(name, format, expected):
    assert result_name(name, format) == expected


def test_what_a_run_writes_replaces_no_original(tmp_path):
    make(tmp_path, 'illumination/a.jpg', 'illumination/a_jpg.png', 'sub/contact_sheet.jpg')
    found = find_photos(f'{tmp_path}/illumination', False, str(tmp_path))
    problems = [job.problem for job in plan_jobs(found, str(tmp_path), illuminations=True)]
    assert problems[0] == f'{found.paths[0]}: its result would replace the original {found.paths[1]}'
    found = find_photos([f'{tmp_path}/illumination', f'{tmp_path}/sub'], False, 'out')
    with pytest.raises(ValueError, match='contact sheet would replace the original'):
        plan_jobs(found, str(tmp_path / 'sub'), sheet=True)


def test_names_that_differ_in_case_alone_are_refused_where_the_folder_takes_them_for_one(monkeypatch):
    assert not any(job.problem for job in plan(['a.png', 'A.png']))
    monkeypatch.setattr(folder, 'ignores_case', lambda folder: True)
    problems = [job.problem for job in plan(['a.png', 'A.png', 'b.png'])]
    assert ['upper and lower case' in problem for problem in problems] == [True, True, False]


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
