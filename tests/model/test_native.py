import subprocess
from pathlib import Path

import pytest

from pollux.model import native


@pytest.mark.slow
@pytest.mark.parametrize("name", ["product", "attention", "decode_layers"])
@pytest.mark.parametrize("processor", ["any", "avx2", "this"])
def test_kernels_stay_within_their_memory_and_are_right(name, processor, tmp_path):
    compiler = native.compiler()
    if compiler is None:
        pytest.skip("no C++ compiler is here to build the kernels with address checks")
    program = tmp_path / "check"
    source = Path(__file__).parent / f"check_{name}.cc"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{native.FOLDER}"]
    if processor == "avx2":
        about = Path("/proc/cpuinfo")
        if not about.is_file() or " avx2 " not in about.read_text():
            pytest.skip("the processor has no AVX2")
        flags += ["-mavx2", "-mfma"]
    flags += [native.THIS_PROCESSOR] if processor == "this" else []
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "checked" in done.stdout
