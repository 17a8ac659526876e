"""The supervisor: configuration, listening sockets, signals, reload, drain, upgrade. It serves no traffic itself; `crew` has the workers."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Literal

from gwcore import upgrade, zygote
from gwcore.control import Channel
from gwcore.crew import PING_S, Crew, Plan, say

if TYPE_CHECKING:
    from gwcore.admin.server import Admin
    from gwcore.config.load import Loaded
    from gwcore.config.schema import AccessLog, Config

WATCH_S = 1.0
ALARM_S = 10.0  # at most one alarm line per worker in this time
ADMIN_BACKLOG = 128
STOP_S = 0.5  # what a worker gets to end itself when told to stop now
TIMER_S = 0.02  # by so much a timer of the loop may be early


def notify(state: str) -> None:
    """Tell the service manager, when there is one (sd_notify)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(state.encode(), "\0" + path[1:] if path[0] == "@" else path)


def open_log(log: AccessLog) -> int:
    """A descriptor of the access log, -1 when it is off. SetupError when it cannot be opened."""
    from gwcore.sockets import SetupError

    if log.path == "off":
        return -1
    if log.path == "-":
        return os.dup(1)
    try:
        return os.open(log.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as why:
        raise SetupError(
            f"cannot open access_log.path {log.path}: {why.strerror}; make the directory, or let this user write there"
        ) from None


class Supervisor:
    """Runs until a signal ends it. `reload()` may be called by the admin interface.

    `arguments` are those of the command line, for an upgrade.
    """

    def __init__(self, loaded: Loaded, config_path: str, spawner: Channel, workers: int, arguments: list[str]):
        from gwcore._speedups.breakers import Breakers
        from gwcore._speedups.shm import Segment
        from gwcore.admin.figures import Opens
        from gwcore.certwatch import CertWatch
        from gwcore.compensation import Compensation
        from gwcore.discovery import Discovery
        from gwcore.events import Events
        from gwcore.health import HealthChecks
        from gwcore.sla import Attainment
        from gwcore.sockets import Listeners
        from gwcore.tickets import TicketKeys

        self.loaded, self.config_path, self.arguments = loaded, config_path, arguments
        self.segment = Segment.create(workers, loaded.config.tls.sessions.cache)
        self.breakers, self.events = Breakers(self.segment), Events()
        self.listeners = Listeners(workers)
        self.admin_sockets = Listeners(1)
        self.crew = Crew(self, spawner, self.segment, self.listeners)
        self.tickets = TicketKeys(self.segment, say)
        self.certs = CertWatch(lambda: self.config, self.use_addresses, say)
        self.discovery = Discovery(lambda: self.start_task(self.use_addresses()), say)
        self.health = HealthChecks(self.segment, self.discovery.addresses, self.events.note, self.healthy)
        self.compensation = Compensation(self)
        self.admin: Admin | None = None
        self.copies_size = 0  # 0 = no store of copies
        self.versions = 0
        self.started = time.time()
        self.upgrades = 0
        self.state: Literal["starting", "serving", "leaving", "draining"] = "starting"
        self.last_reload: dict[str, Any] = {}
        self.reloads = {"ok": 0, "refused": 0}
        self.opens = Opens()
        self.attainment = Attainment()
        self.reloading = asyncio.Lock()
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[int] = self.loop.create_future()
        self.status = 0
        self.drain_cut: asyncio.TimerHandle | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.alarms = [(0, -ALARM_S)] * workers  # pauses told, and when

    @property
    def config(self) -> Config:
        """The configuration in use."""
        return self.loaded.config

    @property
    def addresses(self) -> list[str]:
        """Where clients connect."""
        return [x.address for x in self.config.listeners]

    # ---- start ----

    async def run(self) -> int:
        """Start, serve until the end; returns the exit status. SetupError when something needed cannot be had."""
        from gwcore.sla import read_state

        legacy = upgrade.receive()
        self.inherit(legacy)
        await self.tickets.begin(self.config, upgrade.read(legacy.secrets))
        log_fd = open_log(self.config.access_log)
        self.open_sockets(self.config)
        self.listeners.listen(self.config.listeners)
        self.listen_admin(self.config)
        for s, action in (
            (signal.SIGTERM, self.stop),
            (signal.SIGINT, self.stop),
            (signal.SIGHUP, lambda: self.start_task(self.reload())),
            (signal.SIGUSR1, self.reopen_log),
            (signal.SIGUSR2, lambda: self.start_task(self.upgrade())),
        ):
            self.loop.add_signal_handler(s, action)
        await self.discovery.learn(self.config)
        self.health.adopt(upgrade.read(legacy.health))
        self.health.use(self.config)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # an upgrade blocks them on its way here
        self.make_copies(self.config)
        if self.config.sla.file != "off":
            why = read_state(self.attainment, self.config.sla.file)
            if why:
                say(why)
        self.attainment.note(time.time(), {})
        self.compensation.look(start=True)
        self.crew.start(self.compile(self.config), self.addresses, self.commit_words(), log_fd)
        self.loop.call_later(WATCH_S, self.watch)
        self.start_task(self.compensation.run())
        self.loop.call_later(PING_S, self.ping)
        self.look_at_certificates()
        status = await self.done
        self.note_promises(last=True)
        self.health.stop()
        self.discovery.stop()
        await self.tickets.stop()
        if self.admin:
            await self.admin.stop()
        return status

    def inherit(self, legacy: upgrade.Legacy) -> None:
        self.listeners.inherit(legacy.listeners, [x.address for x in self.config.listeners])
        self.admin_sockets.inherit(legacy.admin, [self.config.admin.address])
        self.crew.adopt(legacy.elders)
        self.started = legacy.started or self.started
        self.upgrades = legacy.upgrades

    def open_sockets(self, config: Config) -> tuple[list[str], list[str]]:
        """Bind the new addresses of listeners and admin; returns them. BindError leaves everything as it was."""
        from gwcore.sockets import BindError

        fresh = self.listeners.open([x.address for x in config.listeners])
        try:
            return fresh, self.admin_sockets.open([config.admin.address])
        except BindError as why:
            self.listeners.close(fresh)
            raise BindError(f"admin.address: {why}") from None

    def listen_admin(self, config: Config) -> None:
        from gwcore.sockets import listen

        listen(config.admin.address, self.admin_sockets.sockets[config.admin.address], ADMIN_BACKLOG)

    def compile(self, config: Config) -> Plan:
        """Compile config into a sealed memfd of the next version."""
        from gwcore.config.compile import compile_plan

        blob = compile_plan(config, self.segment, self.config_path, self.discovery.addresses, self.segment.workers)
        fd = os.memfd_create("gwcore-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        view = memoryview(blob)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        self.versions += 1
        return Plan(self.versions, fd)

    def make_copies(self, config: Config) -> None:
        """The store of copies, at the first configuration that wants one. ValueError or OSError when it cannot be had."""
        from gwcore._speedups.copystore import CopyStore
        from gwcore.config.cache import wanted

        if self.crew.copies is None and wanted(config):
            self.crew.use_copies(CopyStore.create(config.cache.size, self.segment.workers))
            self.copies_size = config.cache.size

    def commit_words(self) -> dict[str, Any]:
        """What every worker must know beside the plan: of the end, for it may come without us, and of sessions in Redis."""
        from gwcore import compensation, copies_redis
        from gwcore.sessions import settings

        t = self.config.timeouts
        return {
            "drain_s": t.drain,
            "drain_tunnels_s": t.drain_tunnels,
            "sessions": settings(self.config),
            "copies": copies_redis.settings(self.config),
            "journal": compensation.settings(self.config, self.config_path),
        }

    def start_task(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self.tasks.discard)

    # ---- what the crew tells ----

    def crew_serves(self) -> None:
        """Now the world may know, and what can wait begins."""
        workers = len(self.crew.slots)
        self.state = "serving"
        say(
            f"serving on {', '.join(self.addresses)} with {workers} worker{'s'[: workers > 1]}, admin on {self.config.admin.address}"
        )
        notify("READY=1")
        self.crew.relieve()
        self.loop.call_soon(self.start_admin)

    def start_admin(self) -> None:
        from gwcore.admin.server import Admin  # its imports take longer than all of the start before them

        if not self.done.done():
            self.admin = Admin(self)
            self.admin.start(self.admin_sockets.sockets[self.config.admin.address][0])

    def crew_gone(self) -> None:
        if self.drain_cut is not None and self.loop.time() >= self.drain_cut.when() - TIMER_S:
            self.end_drain()  # the workers' clocks may strike first
        self.finish(self.status)

    def crew_failed(self, why: str, *, final: bool) -> None:
        if final:
            say(f"{why}; stopping")
            self.finish(1)
        else:  # a process with a loop must not fork, but it may begin anew: the workers serve on
            say(f"{why}; starting anew in place")
            self.become()

    # ---- reload ----

    async def reload(self) -> dict[str, Any]:
        """Read the file again and let every worker take the new plan, or none. Returns {"ok", "version", "errors", "warnings"}."""
        async with self.reloading:
            result = await self._reload()
            self.last_reload = {**result, "time": time.time()}
            self.reloads["ok" if result["ok"] else "refused"] += 1
        say(
            f"reloaded {self.config_path}: plan {result['version']}"
            if result["ok"]
            else "reload refused, nothing changed:\n  " + "\n  ".join(result["errors"])
        )
        for warning in result["warnings"]:
            say(f"warning: {warning}")
        return result

    async def _reload(self) -> dict[str, Any]:
        from gwcore.config.compile import worker_count
        from gwcore.config.load import ConfigErrors, load_file
        from gwcore.config.units import format_size
        from gwcore.sockets import SetupError

        def refused(*errors: str) -> dict[str, Any]:
            return {"ok": False, "version": self.crew.plan.version, "errors": list(errors), "warnings": []}

        log_fd: int | None = None
        with contextlib.ExitStack() as undo:
            try:
                loaded = await self.loop.run_in_executor(None, load_file, self.config_path)
                config = loaded.config
                await self.discovery.learn(config)
                undo.callback(lambda: self.discovery.keep(self.config))
                if self.state != "serving":
                    return refused(f"the gateway is {self.state}; it reloads only while it serves")
                fresh, fresh_admin = self.open_sockets(config)
                undo.callback(self.listeners.close, fresh)
                undo.callback(self.admin_sockets.close, fresh_admin)
                if config.access_log.path != self.config.access_log.path:
                    log_fd = open_log(config.access_log)
                    undo.callback(close_if_open, log_fd)
                self.make_copies(config)
                plan = self.compile(config)
                undo.callback(os.close, plan.fd)
            except ConfigErrors as bad:
                return refused(*map(str, bad.errors))
            except (SetupError, ValueError, OSError) as why:
                return refused(str(why))
            errors = await self.crew.prepare(plan)
            if errors:
                return refused(*errors)
            undo.callback(self.crew.forget, plan)
            if self.state != "serving":
                return refused(f"the gateway is {self.state}")
            try:
                self.listeners.listen(config.listeners)
                self.listen_admin(config)
            except SetupError as why:
                return refused(str(why))
            undo.pop_all()
        self.commit(loaded, plan, log_fd)
        notes = []
        if config.workers != "auto" and worker_count(config) != len(self.crew.slots):
            notes.append(f"workers: still {len(self.crew.slots)}; the number changes at the next start or upgrade")
        if self.copies_size not in (0, config.cache.size):
            notes.append(f"cache.size: still {format_size(self.copies_size)}; it changes at the next start or upgrade")
        return {"ok": True, "version": plan.version, "errors": [], "warnings": [*map(str, loaded.warnings), *notes]}

    def commit(self, loaded: Loaded, plan: Plan, log_fd: int | None) -> None:
        """The point of no return: every worker is ready for the plan, and every new socket listens."""
        before, self.loaded = self.config, loaded
        if (before.tls.tickets, before.redis) != (self.config.tls.tickets, self.config.redis):
            self.start_task(self.tickets.use(self.config))
        self.discovery.keep(self.config)
        self.health.use(self.config)
        self.listeners.close(self.listeners.sockets.keys() - set(self.addresses))
        self.crew.commit(plan, self.addresses, self.commit_words())
        if log_fd is not None:
            self.crew.use_log(log_fd)
        if before.admin.address != self.config.admin.address:
            self.start_task(self.move_admin(before.admin.address))

    async def use_addresses(self) -> None:
        """Names have other addresses, or certificates are new: a plan of the same configuration with them. What stays keeps its connections."""
        async with self.reloading:
            if self.state != "serving":
                return
            plan = self.compile(self.config)
            errors = await self.crew.prepare(plan)
            if errors:
                os.close(plan.fd)
                say("cannot use new addresses or certificates: " + "; ".join(errors))
                return
            self.health.use(self.config)
            self.crew.commit(plan, self.addresses, self.commit_words())

    async def move_admin(self, old: str) -> None:
        if self.admin:
            await self.admin.stop()
        self.start_admin()
        self.admin_sockets.close([old])

    def reopen_log(self) -> None:
        """SIGUSR1, for log rotation."""
        from gwcore.sockets import SetupError

        try:
            self.crew.use_log(open_log(self.config.access_log))
        except SetupError as why:
            say(f"{why}. The old file is written on")

    # ---- the end ----

    def stop(self) -> None:
        """First time: not ready, and after the delay drain. Second time: now."""
        if self.state in ("leaving", "draining"):
            self.cut("stopping now", 1)
            return
        self.state = "leaving"
        notify("STOPPING=1")
        delay = self.config.timeouts.drain_delay
        if delay:
            say(f"not ready any more; draining in {delay:g}s")
            self.loop.call_later(delay, self.drain)
        else:
            self.drain()

    def drain(self) -> None:
        if self.state == "draining":
            return
        self.state = "draining"
        most = self.config.timeouts.drain
        say(f"draining, at most {most:g}s")
        self.listeners.close(list(self.listeners.sockets))  # before the workers empty the queues, so that nothing new joins them
        self.drain_cut = self.loop.call_later(most, self.end_drain)
        self.crew.drain()

    def end_drain(self) -> None:
        if self.drain_cut is not None:
            self.drain_cut.cancel()
            self.drain_cut = None
        self.cut("the drain time is over; closing what is left", 0)

    def cut(self, why: str, status: int) -> None:
        if self.done.done():
            return
        say(why)
        self.state, self.status = "draining", status
        self.crew.stop()
        self.loop.call_later(STOP_S, self.kill)

    def kill(self) -> None:
        if not self.done.done():
            self.crew.kill()
            self.finish(self.status)

    def finish(self, status: int) -> None:
        if not self.done.done():
            self.listeners.close(list(self.listeners.sockets))
            self.done.set_result(status)

    # ---- upgrade ----

    async def upgrade(self) -> None:
        """SIGUSR2: let the installed code check the file; if it likes it, become that code. Old workers serve until the new ones do."""
        async with self.reloading:
            why = await upgrade.check(self.config_path)
            if not why and self.state != "serving":
                why = f"the gateway is {self.state}"
            if why:
                say(f"upgrade refused, nothing changed:\n{why}")
                return
            say("upgrading in place")
            self.become()

    def become(self) -> None:
        """Become the installed code. Comes back only when that is impossible."""
        legacy = upgrade.Legacy(
            self.listeners.numbers(), self.admin_sockets.numbers(), self.crew.legacy(), self.started, self.upgrades + 1
        )
        legacy.secrets = upgrade.leave(self.tickets.legacy())
        legacy.health = upgrade.leave(self.health.legacy())
        self.note_promises(last=True)
        try:
            upgrade.become(legacy, self.arguments)
        except OSError as why:
            say(f"cannot start {sys.executable}: {why.strerror}; nothing changed")

    # ---- watching ----

    def watch(self) -> None:
        """Once a second: has a worker stopped accepting? The data plane only counts, it cannot call."""
        now = time.monotonic()
        self.take_events()
        self.opens.note(now, self.segment.upstream_opens())
        self.note_promises()
        for i, (told, when) in enumerate(self.alarms):
            figures = self.segment.worker_figures(i)
            news = figures["accept_paused"] - told
            if news and now - when >= ALARM_S:
                say(
                    f"alarm: worker {i} has used its descriptors ({figures['connections']} client connections) and paused accepting "
                    f"{news} times; idle connections are closed first. Raise the descriptor limit (gwcore doctor)"
                )
                self.alarms[i] = (figures["accept_paused"], now)
        if not self.done.done():
            self.loop.call_later(WATCH_S, self.watch)

    def note_promises(self, last: bool = False) -> None:
        """Note how promises are kept, and write that down when it is time, or at the end."""
        from gwcore.sla import SAVED_S, write_state

        now = time.time()
        if not last and not self.attainment.due(now):
            return
        self.attainment.note(now, self.segment.sla())
        path = self.config.sla.file
        if path != "off" and (last or not 0 <= now - self.attainment.saved < SAVED_S):
            self.attainment.saved = now
            why = write_state(self.attainment, path)
            if why:
                say(why)

    def take_events(self) -> None:
        """Tell of the transitions of breakers since the last time."""
        for event in self.breakers.events():
            self.events.note(event)

    def healthy(self, upstream: str, endpoint: str, back: bool) -> None:
        """An active check passed after one that did not; back: the endpoint is up again."""
        self.breakers.hint_healthy(upstream)
        if back:
            self.breakers.hint_healthy(upstream, endpoint)

    def look_at_certificates(self) -> None:
        from gwcore.certwatch import LOOK_S

        self.start_task(self.certs.look())
        if not self.done.done():
            self.loop.call_later(LOOK_S, self.look_at_certificates)

    def ping(self) -> None:
        self.crew.ping()
        if not self.done.done():
            self.loop.call_later(PING_S, self.ping)


def close_if_open(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def raise_descriptor_limit() -> None:
    """Soft limit to the hard one; workers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(config_path: str, workers: int | None = None) -> int:
    """Run the gateway of a configuration file until a signal ends it. Returns the exit status: 0 drained, 2 bad configuration, 1 otherwise."""
    from gwcore._speedups import plane as _plane  # noqa: F401  a broken installation shows before anything is forked

    raise_descriptor_limit()
    spawner = zygote.start()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as PID 1 of a container we inherit the children of others
    from gwcore.config.compile import worker_count
    from gwcore.config.load import ConfigErrors, load_file

    config_path = os.path.abspath(config_path)
    try:
        loaded = load_file(config_path)
    except ConfigErrors as bad:
        for e in bad.errors:
            print(e, file=sys.stderr)
        return 2
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    import uvloop

    from gwcore.sockets import SetupError

    arguments = ["run", "-c", config_path, *(["--workers", str(workers)] if workers else [])]

    async def main() -> int:
        return await Supervisor(loaded, config_path, spawner, workers or worker_count(loaded.config), arguments).run()

    try:
        return uvloop.run(main())
    except SetupError as why:
        say(str(why))
    except (OSError, ValueError) as why:
        say(f"cannot start: {why}")
    return 1
