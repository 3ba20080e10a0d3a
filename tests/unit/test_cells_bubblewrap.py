"""bwrap's command line and the seccomp program, without running either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.cells.bubblewrap import bwrap_arguments
from edgellm.cells.filesystem import HostView
from edgellm.cells.network import nft_rules
from edgellm.cells.spec import CellSpec, Mount
from edgellm.errors import CellError

VIEW = HostView(
    mounts=(Mount(Path("/usr"), Path("/usr")), Mount(Path("/home/a/venv"), Path("/home/a/venv"))),
    links=((Path("/bin"), "usr/bin"),),
    files=((Path("/etc/passwd"), "root:x:0:0::/:/bin/sh\n"),),
    kernel_files=(Path("/proc/sys"),),
)
SPEC = CellSpec(
    argv=("engine",),
    runtime_directory=Path("/run/user/1/x"),
    environment={"RAY_AUTH_TOKEN": "secret"},
    model_directory=Path("/models/m"),
    address="10.88.7.2",
)


def arguments(spec: CellSpec) -> tuple[str, ...]:
    return bwrap_arguments(
        spec, VIEW, ("init", "--", *spec.argv), status_fd=9, seccomp_fd=7, file_fds={Path("/etc/passwd"): 8}
    )


def pairs(words: tuple[str, ...], option: str) -> list[tuple[str, str]]:
    return [(words[i + 1], words[i + 2]) for i, word in enumerate(words) if word == option]


def test_sees_only_the_view_the_model_and_its_directory() -> None:
    words = arguments(SPEC)
    assert pairs(words, "--ro-bind") == [
        ("/usr", "/usr"),
        ("/home/a/venv", "/home/a/venv"),
        ("/proc/sys", "/proc/sys"),
        ("/models/m", "/model"),
        ("/run/user/1/x", "/run/edgellm"),
    ]
    assert "--bind" not in words, "nothing of the machine is writable"
    assert pairs(words, "--dev-bind") == [("/dev/net/tun", "/dev/net/tun")]
    assert pairs(words, "--symlink") == [("usr/bin", "/bin")]
    assert pairs(words, "--ro-bind-data") == [("8", "/etc/passwd")]
    assert words[words.index("--") :] == ("--", "init", "--", "engine")


def test_a_head_writes_its_sockets() -> None:
    words = arguments(replace(SPEC, writes_runtime=True))
    assert pairs(words, "--bind") == [("/run/user/1/x", "/run/edgellm")]


def test_fences() -> None:
    words = arguments(SPEC)
    for fence in ("user", "pid", "ipc", "uts", "net"):
        assert f"--unshare-{fence}" in words
    assert words[words.index("--seccomp") + 1] == "7"
    assert {"--die-with-parent", "--new-session"} <= set(words)
    assert words.index("--cap-drop") < words.index("--cap-add")
    assert words[words.index("--cap-drop") + 1] == "ALL"


def test_secrets_are_not_in_the_command_line() -> None:
    assert "secret" not in " ".join(arguments(SPEC))


def test_direct_fabric_keeps_the_network_and_may_not_configure_it() -> None:
    words = arguments(
        CellSpec(
            argv=("engine",), runtime_directory=Path("/r"), fabric="direct", devices=(Path("/dev/nvidia0"),)
        )
    )
    assert "--unshare-net" not in words
    assert "CAP_NET_ADMIN" not in words
    assert pairs(words, "--dev-bind") == [("/dev/nvidia0", "/dev/nvidia0")]


@pytest.mark.parametrize(
    "settings",
    [
        {"argv": ()},
        {"address": None},
        {"address": "10.99.0.1"},
        {"runtime_directory": Path("/x" * 60)},
    ],
    ids=["no command", "no address", "address outside", "long path"],
)
def test_bad_specs(settings: dict[str, object]) -> None:
    good: dict[str, object] = {
        "argv": ("engine",),
        "runtime_directory": Path("/r"),
        "address": "10.88.7.2",
    }
    with pytest.raises(CellError):
        CellSpec(**{**good, **settings})  # type: ignore[arg-type]


def test_paths_as_the_cell_sees_them() -> None:
    assert (SPEC.runtime_path, SPEC.model_path) == (Path("/run/edgellm"), Path("/model"))
    bare = CellSpec(("engine",), Path("/r"), model_directory=Path("/m"), fabric="direct", isolation="none")
    assert (bare.runtime_path, bare.model_path) == (Path("/r"), Path("/m"))


def test_redirect_leaves_own_address_alone() -> None:
    rules = nft_rules("10.88.7.2", "10.88.7.0/24", 4000)
    assert "ip daddr 10.88.7.0/24 ip daddr != 10.88.7.2 meta l4proto tcp redirect to :4000" in rules
