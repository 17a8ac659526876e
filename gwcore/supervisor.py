"""The supervisor: configuration, listening sockets, workers, reload, drain, upgrade. It serves no traffic itself."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gwcore import zygote
from gwcore.control import Channel

if TYPE_CHECKING:
    from gwcore.config.load import Loaded
    from gwcore.config.schema import Config

PREPARE_S = 10.0
BACKOFF_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LIVED_S = 10.0  # a worker that lived so long starts the backoff anew
WATCH_S = 1.0
INHERIT = "GWCORE_LISTENERS"


def say(text: str) -> None:
    """One line for the operator, on stderr."""
    print(f"gwcore: {text}", file=sys.stderr, flush=True)


@dataclass
class WorkerSlot:
    """What the supervisor knows of one worker."""

    number: int
    channel: Channel | None = None
    pid: int = 0
    started: float = 0.0
    version: int = 0
    failures: int = 0
    restarts: int = 0
    paused: int = 0
    verdict: asyncio.Future[str] | None = None
    listening: set[str] = field(default_factory=set)


class Supervisor:
    """Runs until a signal ends it. `reload()` may be called by the admin interface."""

    def __init__(self, loaded: Loaded, config_path: str, spawner: Channel, workers: int):
        from gwcore._speedups.shm import Segment

        self.loaded, self.config_path, self.spawner = loaded, config_path, spawner
        self.config: Config = loaded.config
        self.segment = Segment.create(workers)
        self.slots = [WorkerSlot(i) for i in range(workers)]
        self.sockets: dict[str, list[socket.socket]] = {}
        self.version = 0
        self.plan_fd = -1
        self.log_fd = -1
        self.started = time.time()
        self.ready = False
        self.stopping = False
        self.last_reload: dict[str, Any] = {}
        self.reloading = asyncio.Lock()
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.admin_task: asyncio.Task[None] | None = None

    # ---- start ----

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self.open_log()
        self.inherit_sockets()
        self.open_sockets(self.config)
        self.new_plan(self.config)
        for s, action in (
            (signal.SIGTERM, self.stop),
            (signal.SIGINT, self.stop),
            (signal.SIGHUP, self.on_hup),
            (signal.SIGUSR1, self.reopen_logs),
            (signal.SIGUSR2, self.on_upgrade),
        ):
            loop.add_signal_handler(s, action)
        for slot in self.slots:
            self.spawn(slot)
        self.admin_task = loop.create_task(self.serve_admin())
        loop.call_later(WATCH_S, self.watch)
        status = await self.done
        await self.close_admin()
        return status

    def open_log(self) -> None:
        path = self.config.access_log.path
        if self.log_fd >= 0:
            os.close(self.log_fd)
        self.log_fd = -1
        if path == "-":
            self.log_fd = os.dup(1)
        elif path != "off":
            self.log_fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def inherit_sockets(self) -> None:
        """After an upgrade of the code the listening sockets are there already, by descriptor number."""
        for address, fds in json.loads(os.environ.pop(INHERIT, "{}")).items():
            for fd in fds:
                os.set_inheritable(fd, False)
            self.sockets[address] = [socket.socket(fileno=fd) for fd in fds]

    def open_sockets(self, config: Config) -> list[str]:
        """Open what is new; returns those addresses. BindError leaves everything as it was."""
        from gwcore.sockets import BindError, open_listener

        fresh: list[str] = []
        try:
            for listener in config.listeners:
                have = self.sockets.get(listener.address, [])
                if len(have) != len(self.slots):
                    if have:
                        for s in set(have):
                            s.close()
                    self.sockets[listener.address] = open_listener(listener, len(self.slots))
                    fresh.append(listener.address)
        except BindError:
            for address in fresh:
                for s in set(self.sockets.pop(address)):
                    s.close()
            raise
        return fresh

    def new_plan(self, config: Config) -> int:
        """Compile config into a sealed memfd; it becomes the plan that new workers get. Returns its descriptor."""
        from gwcore.config.compile import compile_plan

        blob = compile_plan(config, self.segment, self.config_path)
        fd = os.memfd_create("gwcore-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        view = memoryview(blob)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        self.version += 1
        if self.plan_fd >= 0:
            os.close(self.plan_fd)
        self.plan_fd = fd
        return fd

    # ---- workers ----

    def spawn(self, slot: WorkerSlot) -> None:
        """Have the zygote fork a worker for the slot; it gets the committed plan, the slot's sockets and the log."""
        if self.stopping:
            return
        channel, theirs = Channel.pair()
        slot.channel, slot.started, slot.pid, slot.listening = channel, time.monotonic(), 0, set()
        sent = self.spawner.send("fork", [theirs.fileno(), self.segment.fd], worker=slot.number)
        theirs.close()
        if not sent:
            say("the process that forks workers is gone; stopping")
            self.finish(1)
            return
        asyncio.get_running_loop().add_reader(
            channel.fileno(), lambda: channel.pump(lambda m, fds: self.on_message(slot, m), lambda: self.on_gone(slot, channel))
        )
        channel.send("prepare", [self.plan_fd], version=self.version)

    def on_message(self, slot: WorkerSlot, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "hello":
            slot.pid = message["pid"]
        elif op in ("ready", "refused") and slot.verdict is not None and not slot.verdict.done():
            slot.verdict.set_result("" if op == "ready" else message["why"])
        elif op == "ready" and slot.channel is not None:
            slot.channel.send("commit", version=message["version"])
        elif op == "refused":
            say(f"worker {slot.number} refused the plan: {message['why']}")
        elif op == "committed" and slot.channel is not None:
            slot.version = message["version"]
            self.equip(slot)

    def equip(self, slot: WorkerSlot) -> None:
        """After a commit: the log, new listeners, and the end of old ones."""
        assert slot.channel is not None
        if not slot.listening:
            slot.channel.send("log", [self.log_fd] if self.log_fd >= 0 else [])
        wanted = {listener.address for listener in self.config.listeners}
        for address in wanted - slot.listening:
            slot.channel.send("listen", [self.sockets[address][slot.number].fileno()], address=address)
        for address in slot.listening - wanted:
            slot.channel.send("unlisten", address=address)
        slot.listening = wanted
        if not self.ready and not self.stopping and all(s.listening for s in self.slots):
            self.ready = True
            say(
                "serving on "
                + ", ".join(sorted(wanted))
                + f" with {len(self.slots)} worker{'s'[: len(self.slots) > 1]}, admin on {self.config.admin.address}"
            )

    def on_gone(self, slot: WorkerSlot, channel: Channel) -> None:
        """A worker ended. In a stop that was asked for; otherwise it crashed: its successor takes over lane and sockets."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(channel.fileno())
        channel.close()
        if slot.channel is not channel:
            return
        slot.channel = None
        self.segment.retire(slot.number)
        if slot.verdict is not None and not slot.verdict.done():
            slot.verdict.set_result(f"worker {slot.number} died")
        if self.stopping:
            if all(s.channel is None for s in self.slots):
                self.finish(0)
            return
        slot.failures = 0 if time.monotonic() - slot.started > LIVED_S else slot.failures + 1
        slot.restarts += 1
        delay = BACKOFF_S[min(slot.failures, len(BACKOFF_S)) - 1] if slot.failures else 0.0
        say(f"worker {slot.number} (pid {slot.pid}) died; replacing it" + (f" in {delay:g}s" if delay else ""))
        if delay:
            loop.call_later(delay, self.spawn, slot)
        else:
            self.spawn(slot)

    # ---- reload ----

    def on_hup(self) -> None:
        asyncio.get_running_loop().create_task(self.reload())

    async def reload(self) -> dict[str, Any]:
        """Read the file again and let every worker take the new plan, or none. Returns {"ok", "version", "errors"}."""
        async with self.reloading:
            result = await self._reload()
        self.last_reload = {**result, "time": time.time()}
        say(
            f"reloaded {self.config_path}: plan {self.version}"
            if result["ok"]
            else "reload refused, nothing changed:\n  " + "\n  ".join(result["errors"])
        )
        return result

    async def _reload(self) -> dict[str, Any]:
        from gwcore.config.compile import worker_count
        from gwcore.config.load import ConfigErrors, load_file
        from gwcore.sockets import BindError

        if not self.config_path:
            return {"ok": False, "errors": ["this gateway runs without a configuration file"]}
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(None, load_file, self.config_path)
            fresh = self.open_sockets(loaded.config)
        except ConfigErrors as bad:
            return {"ok": False, "errors": [str(e) for e in bad.errors]}
        except BindError as bad:
            return {"ok": False, "errors": [str(bad)]}
        notes = []
        if loaded.config.workers != "auto" and worker_count(loaded.config) != len(self.slots):
            notes.append(f"workers: still {len(self.slots)}; the number changes at the next start or upgrade")
        old_fd, old_version = os.dup(self.plan_fd), self.version
        fd = self.new_plan(loaded.config)
        errors = await self._prepare(fd)
        if errors:
            os.close(self.plan_fd)
            self.plan_fd = old_fd
            for slot in self.slots:
                if slot.channel is not None:
                    slot.channel.send("discard", version=self.version)
            for address in fresh:
                for s in set(self.sockets.pop(address)):
                    s.close()
            self.version = old_version
            return {"ok": False, "errors": errors}
        os.close(old_fd)
        gone = {x.address for x in self.config.listeners} - {x.address for x in loaded.config.listeners}
        old_log = self.config.access_log.path
        self.loaded, self.config = loaded, loaded.config
        for slot in self.slots:
            if slot.channel is not None:
                slot.channel.send("commit", version=self.version)
        if old_log != self.config.access_log.path:
            self.reopen_logs()
        if gone:
            asyncio.get_running_loop().call_later(1.0, self._close_sockets, gone)  # the workers take in what is queued first
        return {"ok": True, "version": self.version, "errors": [], "warnings": [str(w) for w in loaded.warnings] + notes}

    async def _prepare(self, fd: int) -> list[str]:
        """PREPARE at every living worker; the reasons of those that refuse."""
        loop = asyncio.get_running_loop()
        asked = [s for s in self.slots if s.channel is not None and s.listening]
        for slot in asked:
            slot.verdict = loop.create_future()
            assert slot.channel is not None
            slot.channel.send("prepare", [fd], version=self.version)
        errors = []
        for slot in asked:
            assert slot.verdict is not None
            try:
                why = await asyncio.wait_for(slot.verdict, PREPARE_S)
            except TimeoutError:
                why = f"worker {slot.number} did not answer within {PREPARE_S:g}s"
            slot.verdict = None
            if why and why != f"worker {slot.number} died":
                errors.append(why)
        return errors

    def _close_sockets(self, addresses: set[str]) -> None:
        for address in addresses - {x.address for x in self.config.listeners}:
            for s in set(self.sockets.pop(address, [])):
                s.close()
            if address.startswith("unix:"):
                os.unlink(address[5:])

    def reopen_logs(self) -> None:
        try:
            self.open_log()
        except OSError as why:
            say(
                f"cannot open the access log {self.config.access_log.path}: {why.strerror}; logging is off until SIGUSR1 finds it"
            )
        for slot in self.slots:
            if slot.channel is not None and slot.listening:
                slot.channel.send("log", [self.log_fd] if self.log_fd >= 0 else [])

    # ---- the end ----

    def stop(self) -> None:
        """First time: drain. Second time: now."""
        if self.stopping:
            say("stopping now")
            for slot in self.slots:
                if slot.channel is not None:
                    slot.channel.send("stop")
            asyncio.get_running_loop().call_later(0.5, self.finish, 0)
            return
        self.stopping = True
        self.ready = False
        asyncio.get_running_loop().call_later(self.config.timeouts.drain_delay, self.drain)

    def drain(self) -> None:
        say(f"draining, at most {self.config.timeouts.drain:g}s")
        for slot in self.slots:
            if slot.channel is not None:
                slot.channel.send("drain")
        for sockets in self.sockets.values():
            for s in set(sockets):
                s.close()
        if all(s.channel is None for s in self.slots):
            self.finish(0)
            return
        asyncio.get_running_loop().call_later(self.config.timeouts.drain, self.cut)

    def cut(self) -> None:
        if not self.done.done():
            say("the drain time is over; closing what is left")
            for slot in self.slots:
                if slot.channel is not None:
                    slot.channel.send("stop")
            asyncio.get_running_loop().call_later(0.5, self.finish, 0)

    def finish(self, status: int) -> None:
        if not self.done.done():
            for address in self.sockets:
                if address.startswith("unix:") and os.path.exists(address[5:]):
                    os.unlink(address[5:])
            self.done.set_result(status)

    def on_upgrade(self) -> None:
        """SIGUSR2: check the file with the new code, then become the new code. Workers see the end of their channel and drain."""
        check = subprocess.run(
            [sys.executable, "-m", "gwcore", "check", "-c", self.config_path], capture_output=True, text=True, check=False
        )
        if check.returncode:
            say(
                "upgrade refused, nothing changed: the new code does not accept the configuration\n" + check.stderr + check.stdout
            )
            return
        fds: dict[str, list[int]] = {}
        for address, sockets in self.sockets.items():
            fds[address] = [s.fileno() for s in sockets]
            for s in set(sockets):
                os.set_inheritable(s.fileno(), True)
        os.environ[INHERIT] = json.dumps(fds)
        say("upgrading in place")
        workers = ["--workers", str(len(self.slots))]
        os.execv(sys.executable, [sys.executable, "-m", "gwcore", "run", "-c", self.config_path, *workers])

    # ---- watching ----

    def watch(self) -> None:
        """Once a second: has a worker stopped accepting?"""
        for slot in self.slots:
            figures = self.segment.worker_figures(slot.number)
            if figures["accept_paused"] > slot.paused:
                say(
                    f"alarm: worker {slot.number} has used its descriptors ({figures['connections']} client connections) and paused accepting "
                    f"{figures['accept_paused'] - slot.paused} times; idle connections are closed first. Raise the descriptor limit (gwcore doctor)"
                )
            slot.paused = figures["accept_paused"]
        if not self.done.done():
            asyncio.get_running_loop().call_later(WATCH_S, self.watch)

    def status(self) -> dict[str, Any]:
        """What /status shows."""
        from gwcore.admin.status import build

        return build(self)

    async def serve_admin(self) -> None:
        while not self.ready and not self.stopping:
            await asyncio.sleep(0.01)  # the first answer to a client comes before our own comforts
        from gwcore.admin.server import serve

        try:
            await serve(self)
        except OSError as why:
            say(f"cannot serve admin on {self.config.admin.address}: {why.strerror or why}; traffic is not affected")

    async def close_admin(self) -> None:
        if self.admin_task is not None:
            self.admin_task.cancel()
            await asyncio.gather(self.admin_task, return_exceptions=True)


def raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(config_path: str, workers: int | None = None) -> int:
    """Run the gateway of a configuration file until a signal ends it. Returns the exit status: 0 drained, 2 bad configuration, 1 otherwise."""
    from gwcore._speedups import plane as _plane  # noqa: F401  a broken installation shows before anything is forked

    raise_descriptor_limit()
    spawner = zygote.start()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    from gwcore.config.compile import worker_count
    from gwcore.config.load import ConfigErrors, load_file

    try:
        loaded = load_file(config_path)
    except ConfigErrors as bad:
        for e in bad.errors:
            print(e, file=sys.stderr)
        return 2
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    import uvloop

    from gwcore.sockets import BindError

    async def main() -> int:
        return await Supervisor(loaded, os.path.abspath(config_path), spawner, workers or worker_count(loaded.config)).run()

    try:
        return uvloop.run(main())
    except BindError as why:
        say(str(why))
    except OSError as why:
        say(f"cannot start: {why}")
    return 1
