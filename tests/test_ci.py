"""What .ci/run answers, with stand-ins for the commands that it runs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Fails for the arguments in BROKEN; a demo leaves what a demo leaves.
MAKE = """#!/usr/bin/env bash
if [ "$1" = demo ]; then
    folder=${2##*run_dir=}
    mkdir -p "$folder"
    echo next:
    echo '"status": "finished"' >"$folder/run.json"
    echo page >"$folder/report.html"
fi
[ -z "$BROKEN" ] || [[ " $*" != *" $BROKEN"* ]]
"""
# pip install --target FOLDER leaves a command there; everything else succeeds.
PYTHON = """#!/usr/bin/env bash
while [ $# -gt 0 ]; do
    if [ "$1" = --target ]; then
        mkdir -p "$2/bin"
        printf '#!/usr/bin/env bash\\n' >"$2/bin/smope"
        chmod +x "$2/bin/smope"
    fi
    shift
done
"""


def write_program(path: Path, text: str) -> None:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run_ci(folder: Path, broken: str) -> subprocess.CompletedProcess[str]:
    """A copy of .ci/run among stand-ins; the make that has `broken` among its arguments fails."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_some.py").write_text("@pytest.mark.slow\n")
    write_program(folder / "bin" / "make", MAKE)
    write_program(folder / "bin" / "chromium", "#!/usr/bin/env bash\n")
    write_program(folder / ".venv" / "bin" / "python", PYTHON)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "VENV"},
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "BROKEN": broken,
        "TMPDIR": str(folder),
    }
    return subprocess.run(
        ["bash", ".ci/run"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_passes_when_every_step_passes(tmp_path: Path):
    done = run_ci(tmp_path, broken="")
    assert "all steps passed" in done.stdout
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("tmp.*")), "the scratch folder stays"


@pytest.mark.parametrize(
    ("broken", "step"),
    [
        ("test", "tests"),
        ("tests/test_some.py", "slow tests"),
        ("tests/test_gpu_benchmark.py", "GPU benchmark, rehearsed"),
        ("lint", "lint and types"),
        ("docs", "documentation"),
        ("demo", "demo, smallest"),
        ("dist", "sdist and wheel build"),
    ],
)
def test_fails_with_the_step_that_fails(tmp_path: Path, broken: str, step: str):
    done = run_ci(tmp_path, broken)
    assert done.returncode != 0
    assert f"=== {step}: FAILED" in done.stdout
    assert "all steps passed" not in done.stdout
    assert not list(tmp_path.glob("tmp.*")), "the scratch folder stays"
