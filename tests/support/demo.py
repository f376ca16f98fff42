"""`scripts/demo` and the example shop as processes, with data and addresses of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tallystick_server.cli.demo_provider import API_KEY_VARIABLE
from tests.support.platform import ROOT, free_address
from tests.support.processes import wait_for_line


@contextmanager
def demo_folder() -> Iterator[Path]:
    """A private folder for the data of a demo, which other users may not enter. Its path is short
    enough for a socket.
    """
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / ".data"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def demo_environment(folder: Path, **environment: str) -> dict[str, str]:
    """The environment of a demo with its data in a folder, at addresses of its own."""
    removed = ("TALLYSTICK_DATABASE__URL", API_KEY_VARIABLE)
    return {
        **{name: value for name, value in os.environ.items() if name not in removed},
        "TALLYSTICK_DATA_DIR": str(folder),
        "TALLYSTICK_SERVER__LISTEN": free_address(),
        "TALLYSTICK_HTTP__LISTEN": free_address(),
        **environment,
    }


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tallystick_server.cli.demo", "--once"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=demo_environment(folder, **environment),
    )


@contextmanager
def running_demo(
    folder: Path, address: str, *, is_killed: bool = False, **environment: str
) -> Iterator[str]:
    """A demo whose steps are done and that keeps running, until it is stopped or killed. Yields
    what it has printed.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tallystick_server.cli.demo"],
        cwd=ROOT,
        env=demo_environment(folder, TALLYSTICK_SERVER__LISTEN=address, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield "".join(wait_for_line(process, process.stdout, "until Ctrl-C"))
    finally:
        process.send_signal(signal.SIGKILL if is_killed else signal.SIGTERM)
        process.communicate(timeout=60)


@dataclass(frozen=True, slots=True)
class RunningShop:
    """The example shop. `errors`: the file of its standard error."""

    url: str
    process: subprocess.Popen[str]
    errors: Path

    def wait_for_line(self, text: str) -> None:
        """Reads what it prints until a line contains the text."""
        wait_for_line(self.process, self.process.stdout, text)


@contextmanager
def running_shop(folder: Path, address: str, port: str) -> Iterator[RunningShop]:
    """The example shop, which takes payments by the platform at an address."""
    errors = folder / f"shop-{port}.log"
    with errors.open("w") as error_file:
        process = subprocess.Popen(
            [
                *("env", "--default-signal=INT"),  # a test in the background ignores it
                sys.executable,
                str(ROOT / "clients/python/examples/shop/shop.py"),
                address,
                port,
            ],
            stdout=subprocess.PIPE,
            stderr=error_file,
            text=True,
        )
        try:
            shop = RunningShop(f"http://127.0.0.1:{port}", process, errors)
            shop.wait_for_line(f"The shop is at {shop.url}")
            yield shop
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


@dataclass(frozen=True, slots=True)
class DemoShop:
    """A demo and the example shop. `origins`: those of the shop, the status pages and the pages of
    the provider.
    """

    address: str
    shop: RunningShop
    origins: tuple[str, str, str]


@contextmanager
def running_demo_shop() -> Iterator[DemoShop]:
    """A demo with the example shop, each at an address of its own."""
    address, shop_address = free_address(), free_address()
    allowed = f"dev=http://{shop_address}"
    with (
        demo_folder() as folder,
        running_demo(folder, address, TALLYSTICK_PAYMENT__RETURN_ORIGINS=allowed) as output,
        running_shop(folder, address, shop_address.rpartition(":")[2]) as shop,
    ):
        (page_url,) = set(re.findall(r"http\S+/c/pay/\S+", output))
        (status_url,) = set(re.findall(r"http\S+/p/\S+", output))
        origins = (shop.url, status_url.partition("/p/")[0], page_url.partition("/c/")[0])
        yield DemoShop(address, shop, origins)
