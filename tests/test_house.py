"""The house: few files in front, rooms behind, arrows in one direction, functions of few arguments, README's tree."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = 8  # at most, else they are a record


def find_files():
    """Files of the repository, relative to its root; those on disk where this is no checkout."""
    done = subprocess.run(['git', 'ls-files'], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode or not done.stdout:
        return sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob('*'), *ROOT.glob('*/*.py')] if path.is_file())
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


FILES = find_files()
SOURCES = [name for name in FILES if name.endswith('.py')]
ROOMS = sorted({name.split('/')[0] for name in SOURCES if '/' in name} - {'tests'})
TREES = {name: ast.parse((ROOT / name).read_text(encoding='utf-8')) for name in SOURCES}


def find_imports(name):
    """Files of ours that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == 'importlib.import_module':
            modules = [part.value for part in node.args if isinstance(part, ast.Constant)]
        else:
            continue
        for module in modules:
            path = module.replace('.', '/')
            found |= {f'{path}.py', f'{path}/__init__.py'} & set(SOURCES)
    return found - {name}


def test_at_most_ten_files_lie_in_front():
    front = [name for name in SOURCES if '/' not in name]
    assert {'train.py', 'test.py', 'inference.py', 'model.py', 'loss.py', 'pipeline.py', 'utils.py'} <= set(front)
    assert len(front) <= 10, front


def test_no_file_imports_itself_through_others():
    done, path = set(), []

    def visit(name):
        assert name not in path, ' -> '.join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(find_imports(name)):
            visit(other)
        done.add(path.pop())

    for name in SOURCES:
        visit(name)


def test_no_two_rooms_use_each_other():
    uses = {room: set() for room in ROOMS}
    for name in SOURCES:
        room = name.split('/')[0]
        if room in uses:
            uses[room] |= {other.split('/')[0] for other in find_imports(name)} & (set(ROOMS) - {room})
    both = {tuple(sorted((room, other))) for room in ROOMS for other in uses[room] if room in uses[other]}
    assert not both


@pytest.mark.parametrize('room', ROOMS)
def test_each_room_says_what_it_is_for(room):
    assert ast.get_docstring(TREES[f'{room}/__init__.py'])


def test_functions_take_few_arguments():
    """Kernels, decorated for Numba or Triton, take what their compilers allow."""
    many = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not is_kernel(node):
                taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [argument.arg for argument in taken if argument.arg not in ('self', 'cls', 'ctx')]
                if len(names) > ARGUMENTS:
                    many.append(f'{name}:{node.lineno} {node.name} takes {len(names)}')
    assert not many, '\n'.join(many)


def is_kernel(node):
    return any(
        re.search(r'jit|kernel|inlined|overload|intrinsic', ast.unparse(decorator)) for decorator in node.decorator_list
    )


def test_the_tree_in_readme_is_the_tree():
    """A code block that begins with train.py: every .py in front, every folder, and one line a room."""
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    blocks = re.findall(r'^```[^\n]*\n(.*?)^```', readme, re.MULTILINE | re.DOTALL)
    tree = next((block for block in blocks if block.startswith('train.py')), None)
    assert tree is not None, 'README.md: no code block that begins with train.py'
    assert {name for name in SOURCES if '/' not in name} == set(re.findall(r'\b\w+\.py\b', tree))
    folders = {name.split('/')[0] for name in FILES if '/' in name and not name.startswith('.')}
    assert folders == set(re.findall(r'(?<!\S)(\w+)/', tree))
    assert all(len(re.findall(rf'^{room}/ +\S', tree, re.MULTILINE)) == 1 for room in ROOMS)
