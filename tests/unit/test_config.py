"""Configuration: every error at once, with its place and a remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gwcore.config.compile import compile_plan
from gwcore.config.dump import dump
from gwcore.config.load import ConfigErrors, load_text
from gwcore.config.schema import Config
from gwcore.config.tls import TlsRules
from gwcore.config.units import format_duration, parse_duration, parse_size
from gwcore.explain import explain
from tests.tls import issue

GOOD = """\
listeners:
  - address: 127.0.0.1:8080
upstreams:
  users:
    endpoints: [127.0.0.1:9000, {address: "[::1]:9001", weight: 2}, "unix:/tmp/x.sock"]
routes:
  - match: {prefix: /api/, host: api.example.com, methods: [GET, POST], headers: {X-Canary: "1"}}
    upstream: users
    tier: P1
  - match: {path: /proxy}
    respond: {status: 200, headers: {X-Gateway: gwcore}, body: OK}
"""


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as e:
        load_text(text, "gw.yaml")
    return [str(x) for x in e.value.errors]


def test_the_first_configuration_is_good_and_compiles():
    loaded = load_text(GOOD)
    assert loaded.warnings == [] and [r.name for r in loaded.config.routes] == ["route-1", "route-2"]
    assert len(compile_plan(loaded.config)) > 1000


def test_every_error_at_once_with_its_place():
    text = (
        GOOD.replace("tier: P1", "tier: P9").replace("endpoints:", "endpoint:").replace("status: 200", "status: 20")
        + "limit: {}\n"
    )
    got = errors(text)
    assert [e.split(": ")[0] for e in got] == ["gw.yaml:4:3", "gw.yaml:5:5", "gw.yaml:9:5", "gw.yaml:11:15", "gw.yaml:12:1"]
    assert "upstreams.users.endpoint: unknown key; did you mean endpoints?" in got[1]
    assert "'P9' is not one of" in got[2]
    assert "limit: unknown key; did you mean limits?" in got[4]


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (("upstream: users", "upstream: user"), "there is no upstream user; did you mean users?"),
        (("127.0.0.1:8080", "127.0.0.1"), "is not an address; write host:port"),
        (("127.0.0.1:8080", "127..0.1:8080"), "'127..0.1' is no host name"),
        (("127.0.0.1:8080", '"a\\x01b:8080"'), "is no host name"),
        (("127.0.0.1:8080", "'" + "é" * 64 + ":8080'"), "is no host name"),
        (("127.0.0.1:8080", "'[::1::]:8080'"), "is no IPv6 address"),
        (("127.0.0.1:8080", "'[fe80::1%99999999999]:8080'"), "is no IPv6 address"),
        (("methods: [GET, POST]", "methods: [get]"), "methods are upper case"),
        (("prefix: /api/", "prefix: api"), "must begin with /"),
        (("prefix: /api/", "prefix: /api/, path: /x"), "give one of path, prefix and regex"),
        (("tier: P1", "respond: {}"), "give one of upstream, targets and respond"),
        (("X-Gateway: gwcore", "Content-Length: 5"), "belongs to the framing"),
        (("X-Gateway: gwcore", '"X Y": 5'), "is not a header name"),
        (("X-Gateway: gwcore", 'X: "a\\r\\nb"'), "control character"),
        (("weight: 2", "weight: -1"), "greater than or equal to 0"),
        (("listeners:", "timeouts: {header: 10}\nlisteners:"), "is not a duration; write a number with a unit"),
        (("listeners:", "admin: {address: '0.0.0.0:9901'}\nlisteners:"), "set admin.token"),
        (("listeners:", "trusted_proxies: [10.0.0.0/99]\nlisteners:"), "is not a network"),
        (("listeners:", "workers: 0\nlisteners:"), "workers must be from 1 to 1024"),
        (("status: 200", "status: 204"), "a 204 answer has no body"),
        (("address: 127.0.0.1:8080", "address: 127.0.0.1:8080\n    tls: {certificates: []}"), "at least 1 item"),
        (("match: {path: /proxy}", 'match: {regex: "^/("}'), "does not compile"),
        (("body: OK", "body: '${NOT_SET_ANYWHERE}'"), "NOT_SET_ANYWHERE is not set"),
        (("listeners:", "listeners: []\nlisteners:"), "is given twice; the first is in line 1"),
        (
            ("- address: 127.0.0.1:8080", "- address: 127.0.0.1:8080\n  - address: 127.0.0.1:8080"),
            "is used by listeners[0] already",
        ),
        (("host: api.example.com", "host: 'http://x'"), "is not a host name"),
        (
            ("match: {path: /proxy}", "match: {path: /proxy}\n    rewrite: {strip_prefix: /other}"),
            "is not the beginning of the route",
        ),
        (("tier: P1", "name: x\n  - {name: x, upstream: users}"), "the name x is used by routes[0] already"),
        (("listeners:", "request_id: {header: Content-Length}\nlisteners:"), "means something else: choose an X- name"),
        (("listeners:", "request_id: {header: hOST}\nlisteners:"), "means something else"),
        (("listeners:", "request_id: {header: a b}\nlisteners:"), "'a b' is not the name of a header"),
        (("listeners:", "deadline: {header: Host}\nlisteners:"), "means something else"),
        (("listeners:", "deadline: {header: x-request-id}\nlisteners:"), "are both x-request-id"),
        (("tier: P1", "request_headers: {set: {host: x}}"), "set upstreams.*.host"),
        (("tier: P1", "request_headers: {remove: [Connection]}"), "belongs to the framing"),
        (("tier: P1", "response_headers: {add: {transfer-encoding: x}}"), "belongs to the framing"),
        (("X-Gateway: gwcore", "Date: x"), "Date is the gateway's"),
        (("  users:", "  users:\n    pool: {granularity: template, principal: a b}"), "is not a header name"),
        (("  users:", "  users:\n    hash: {by: header, name: a b}"), "needs a name, such as"),
        (("listeners:", "via: {name: a b}\nlisteners:"), "use letters, digits"),
        (("listeners:", "buffers: {high: 1KiB, low: 1MiB}\nlisteners:"), "low 1MiB is above high 1KiB"),
        (("listeners:", "timeouts: {header: 50d}\nlisteners:"), "is too long; 49d is the most"),
        (
            ("prefix: /api/", "prefix: /a/../b"),
            "can never match, for paths are compared without . and .. and needless escapes: write /b",
        ),
        (("X-Gateway: gwcore", "X-Gateway: true"), "quote it"),
        (("listeners:", "access_log: {path: /}\nlisteners:"), "/ is a directory"),
        (("listeners:", "access_log: {path: /nowhere/at/all.log}\nlisteners:"), "there is no directory /nowhere/at; make it"),
        (("listeners:", "admin: {address: '127.0.0.1:8080'}\nlisteners:"), "is used by listeners[0] already"),
        (("127.0.0.1:8080", "0.0.0.0:9901"), "choose another port for admin.address, whose default is 127.0.0.1:9901"),
        (("127.0.0.1:8080", "localhost:9901"), "is used by listeners[0] already"),
        (
            ("- address: 127.0.0.1:8080", "- address: 127.0.0.1:8080\n  - address: 0.0.0.0:8080"),
            "0.0.0.0:8080 and 127.0.0.1:8080 overlap, and 127.0.0.1:8080 is used by listeners[0] already",
        ),
    ],
)
def test_bad_forms_are_named(change, want):
    got = errors(GOOD.replace(change[0], change[1], 1))
    assert any(want in e for e in got), got


@pytest.mark.parametrize("text", ["", "[]", "a: [", "\t", "just text", "a: &x [*x]", "? [a]\n: b", "listeners: 5", "\0"])
def test_garbage_is_a_config_error(text):
    assert errors(text)


def test_aliases_that_multiply_are_stopped():
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    (got,) = errors(text)
    assert "aliases stand for more than 100,000 values in all" in got and got.startswith("gw.yaml:")
    assert load_text(
        GOOD.replace("methods: [GET, POST]", "methods: &m [GET]").replace("path: /proxy", "path: /proxy, methods: *m")
    )


def test_off_needs_no_quotes():
    text = GOOD.replace("users:\n", "users:\n    concurrency: {mode: off}\n", 1)
    text += "access_log: {path: off}\nvia: {on: off}\nrequest_id: {header: off}\ndeadline: {header: off}\n"
    config = load_text(text).config
    assert (config.access_log.path, config.via.on, config.request_id.header, config.deadline.header) == ("off",) * 4
    assert config.upstreams["users"].concurrency.mode == "off"


def test_families_do_not_overlap():
    assert load_text(GOOD.replace("- address: 127.0.0.1:8080", "- address: '[::]:8080'\n  - address: 0.0.0.0:8080"))


def test_the_log_is_not_made_by_a_check(tmp_path):
    assert load_text(f"access_log: {{path: {tmp_path}/x.log}}\n" + GOOD).warnings == []
    assert list(tmp_path.iterdir()) == []


def test_warnings_of_values_that_mean_something_else():
    got = [
        str(w) for w in load_text("trusted_proxies: [10.0.0.1/8, '::1', 10.0.0.0/8]\nbuffers: {total: 1KiB}\n" + GOOD).warnings
    ]
    assert len(got) == 2 and "buffers.total: holds the buffers of a few requests only" in got[0]
    assert "trusted_proxies[0]: 10.0.0.1/8 is the network 10.0.0.0/8" in got[1]


@pytest.mark.parametrize(
    ("method", "url", "want"), [("G T", "/", "is not a method"), ("GET", "nope", "neither a path nor a URL")]
)
def test_explain_says_what_is_no_request(method, url, want):
    with pytest.raises(ValueError, match=want):
        explain(load_text(GOOD).config, method, url)


def test_keys_named_on_need_no_quotes():
    text = "listeners: [{address: '127.0.0.1:1'}]\nroutes: [{upstream: a}]\nvia: {on: response}\n"
    c = load_text(text + "upstreams: {a: {endpoints: ['127.0.0.1:2'], retry: {on: [reset]}}}\n").config
    assert c.via.on == "response" and c.upstreams["a"].retry.on == ["reset"]


def test_environment(monkeypatch):
    monkeypatch.setenv("PORT", "8081")
    monkeypatch.setenv("WORKERS", "3")
    c = load_text(
        "workers: ${WORKERS}\n" + GOOD.replace("8080", "${PORT}").replace("body: OK", 'body: "${BODY:-none} $$5"')
    ).config
    assert c.listeners[0].address == "127.0.0.1:8081" and c.workers == 3
    assert c.routes[1].respond is not None and c.routes[1].respond.body == "none $5"


def test_warnings_name_what_cannot_win():
    got = [str(w) for w in load_text(GOOD + "  - match: {path: /proxy}\n    upstream: users\n").warnings]
    assert any("can never win: route-2" in w for w in got)


def test_units():
    assert [parse_duration(x) for x in ("250ms", "5s", "1m", "1h", "off", 0, "1.5s")] == [0.25, 5, 60, 3600, 0, 0, 1.5]
    assert [parse_size(x) for x in ("16KiB", "4MiB", 5, "off", "1kB")] == [16384, 4 << 20, 5, 0, 1000]
    for bad in ("5", 5, "x", "-1s", None, True, "1 s s"):
        with pytest.raises(ValueError, match="duration"):
            parse_duration(bad)
    for value in (0.0, 0.25, 5.0, 60.0, 3600.0, 90.0):
        assert parse_duration(format_duration(value)) == value


def test_defaults_are_those_of_the_table():
    c = load_text(GOOD).config
    u = c.upstreams["users"]
    p, lim, t = u.pool, c.limits, c.timeouts
    assert (t.header, t.keepalive, t.body_idle, t.client_write, t.linger, t.drain, t.drain_delay) == (10, 75, 30, 60, 2, 30, 0)
    assert (lim.requests_per_connection, lim.connection_age, lim.url_bytes, lim.header_bytes, lim.header_count) == (
        10000,
        3600,
        8192,
        32768,
        100,
    )
    assert (lim.trailer_bytes, lim.chunk_ext_bytes, lim.body_bytes, lim.body_min_rate) == (4096, 256, 64 << 20, 256)
    assert (lim.response_header_bytes, lim.response_header_count) == (32768, 200)
    assert (c.buffers.high, c.buffers.low, c.buffers.replay) == (128 << 10, 32 << 10, 64 << 10)
    assert (u.balance, u.hash.bound, u.endpoints[0].weight) == ("least_request", 1.25, 1)
    assert (p.granularity, p.max_connections, p.max_idle, p.idle_timeout, p.max_requests, p.max_age) == (
        "backend",
        256,
        256,
        60,
        10000,
        3600,
    )
    assert (p.queue.size, p.queue.timeout) == (512, 0.25)
    assert (u.timeouts.connect, u.timeouts.write, u.timeouts.response, u.timeouts.idle) == (2, 30, 30, 60)
    assert (u.retry.attempts, u.retry.on, u.retry.hedge) == (1, ["connect", "stale"], 0.0)
    assert (c.admin.address, c.access_log.path, c.access_log.buffer, c.access_log.flush) == ("127.0.0.1:9901", "-", 65536, 1)
    assert (c.via.on, c.request_id.header, c.headers.underscore) == ("request", "X-Request-ID", "keep")


def test_dump_reads_back_to_the_same():
    c = load_text(GOOD + "timeouts: {header: 250ms}\nlimits: {body_bytes: off}\n").config
    again = load_text(json.dumps(dump(c))).config
    assert again.model_dump() == c.model_dump()


def test_json_schema_names_every_key():
    schema = Config.model_json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)


def gwcore(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gwcore", *args], capture_output=True, text=True, timeout=60)


def test_commands(tmp_path: Path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(GOOD)
    bad.write_text(GOOD + "x: 1\n")
    assert gwcore("check", "-c", str(good)).returncode == 0
    done = gwcore("check", "-c", str(bad))
    assert done.returncode == 2 and f"{bad}:12:1: x: unknown key" in done.stderr
    assert gwcore("run", "--check-only", "-c", str(bad)).returncode == 2
    assert gwcore("run", "-c", str(bad)).returncode == 2
    assert gwcore("run", "-c", str(tmp_path / "none.yaml")).returncode == 2
    assert json.loads(gwcore("schema").stdout)["title"] == "Config"
    done = gwcore("explain", "-c", str(good), "GET", "/api/x", "-H", "Host: api.example.com", "-H", "X-Canary: 1")
    assert done.returncode == 0 and "route route-1" in done.stdout and "not route-2: path is not /proxy" in done.stdout
    assert gwcore("explain", "-c", str(good), "GET", "/api/x").returncode == 1


def test_explain_agrees_with_the_router():
    from gwcore._speedups.router import RouterProbe

    text = """
listeners: [{address: "127.0.0.1:1"}]
upstreams: {u: {endpoints: ["127.0.0.1:9"]}}
routes:
  - {name: a, match: {prefix: /a}, upstream: u}
  - {name: ab, match: {prefix: /a/b}, upstream: u}
  - {name: h, match: {host: h.x, prefix: /}, upstream: u}
  - {name: e, match: {path: /a/b}, upstream: u}
"""
    config = load_text(text).config
    probe = RouterProbe(compile_plan(config))
    for host in ("", "h.x", "q"):
        for path in ("/", "/a", "/a/b", "/a/b/c", "/ab"):
            want = probe.find(host.encode(), path.encode())[0]
            said, found = explain(config, "GET", f"http://{host}{path}" if host else path)
            assert found == (want is not None) and (not found or f"\nroute {want} " in said), (host, path, said)


def test_doctor_reads_a_machine(tmp_path):
    from gwcore.doctor import examine, render

    root = tmp_path / "proc/sys/net/core"
    root.mkdir(parents=True)
    (root / "somaxconn").write_text("128\n")
    found = {f.name: f for f in examine(str(tmp_path))}
    assert (
        found["net.core.somaxconn"].level == "serious" and "sysctl -w net.core.somaxconn=" in found["net.core.somaxconn"].command
    )
    assert "SERIOUS net.core.somaxconn: 128" in render(list(found.values()))
    done = gwcore("doctor", "--json")
    assert {f["name"] for f in json.loads(done.stdout)} >= {"descriptor limit", "OpenSSL", "CPUs"}


def test_reference_pages_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "ci/gen_docs.py", "--check"], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("tls", "path"),
    [
        ("certificates: [{cert: a.test.pem, key: empty}]", "listeners[0].tls.certificates[0].key"),
        ("certificates: [{cert: empty, key: a.test.key}]", "listeners[0].tls.certificates[0].cert"),
        ("certificates: [{cert: a.test.pem, key: a.test.key, ocsp: empty}]", "listeners[0].tls.certificates[0].ocsp"),
        ('certificates: [{cert: "a\\0", key: a.test.key}]', "listeners[0].tls.certificates[0].cert"),
        (
            "certificates: [{cert: a.test.pem, key: a.test.key}], client_auth: {mode: require, ca: empty}",
            "listeners[0].tls.client_auth.ca",
        ),
        (
            "certificates: [{cert: a.test.pem, key: a.test.key}], client_auth: {mode: require, ca: a.test.pem, crl: empty}",
            "listeners[0].tls.client_auth.crl",
        ),
    ],
)
def test_an_empty_file_is_never_taken_for_one_not_asked_for(tmp_path, tls, path):  # T9
    issue(tmp_path, "a.test")
    (tmp_path / "empty").touch()
    text = f"listeners: [{{address: '127.0.0.1:1', tls: {{{tls}}}}}]\nroutes: [{{respond: {{status: 200}}}}]\n"
    with pytest.raises(ConfigErrors) as e:
        load_text(text, base=tmp_path)
    assert [x.path for x in e.value.errors] == [path]


def test_an_empty_file_of_authorities_is_not_the_system_s(tmp_path):  # T9
    (tmp_path / "empty").touch()
    text = (
        "listeners: [{address: '127.0.0.1:1'}]\nupstreams: {a: {endpoints: ['b:1'], tls: {ca: empty}}}\nroutes: [{upstream: a}]\n"
    )
    with pytest.raises(ConfigErrors, match=r"upstreams\.a\.tls\.ca: .*empty is empty"):
        load_text(text, base=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "redis: 'redis://:hush@h:1/0'",
        "tls: {tickets: hush}",
        "redis: {url: 'redis://:hush/hush@h:1'}",
        "redis: {url: 'redis://:hush#hush@h'}",
        "redis: {url: 'http://:hush@h'}",
    ],
)
def test_errors_do_not_show_secrets(text):
    with pytest.raises(ConfigErrors) as e:
        load_text(f"listeners: [{{address: '127.0.0.1:1'}}]\nroutes: [{{respond: {{status: 200}}}}]\n{text}")
    assert "hush" not in str(e.value)


@pytest.mark.parametrize(
    ("ciphers", "named"),
    [
        ("aNULL:RC4", ["aNULL", "RC4"]),
        ("ALL", ["ADH-"]),
        ("ECDHE-ECDSA-AES128-GCM-SHA256:EXP-RC4-MD5", ["EXP-RC4-MD5"]),
        ("ECDHE+AESGCM:DES-CBC3-SHA", ["DES-CBC3-SHA"]),
        ("AESGCM:eNULL", ["eNULL"]),
        ("ALL:COMPLEMENTOFALL:@SECLEVEL=0", ["ADH-"]),
    ],
)
@pytest.mark.parametrize("where", ["listener", "upstream"])
def test_ciphers_that_protect_nobody_are_refused(tmp_path, ciphers, named, where):  # T1
    issue(tmp_path, "a.test")
    own = "certificates: [{cert: a.test.pem, key: a.test.key}]"
    bad = f", ciphers: '{ciphers}'"
    text = f"listeners: [{{address: '127.0.0.1:1', tls: {{{own}{bad if where == 'listener' else ''}}}}}]\n"
    if where == "upstream":
        text += f"upstreams: {{a: {{endpoints: ['b:1'], tls: {{verify: off{bad}}}}}}}\n"
    with pytest.raises(ConfigErrors) as e:
        load_text(text + "routes: [{respond: {status: 200}}]\n", base=tmp_path)
    assert len(e.value.errors) == 1 and e.value.errors[0].path.endswith("tls.ciphers")
    assert all(name in str(e.value) for name in named)


def test_ciphers_that_are_left_out_are_no_error(tmp_path):  # T1
    issue(tmp_path, "a.test")
    own = "certificates: [{cert: a.test.pem, key: a.test.key}]"
    for good in ("HIGH:!aNULL:!RC4:!3DES", "ECDHE+AESGCM:ECDHE+CHACHA20", "ALL:!aNULL:!eNULL:-3DES:!SEED:!IDEA"):
        text = f"listeners: [{{address: '127.0.0.1:1', tls: {{{own}, ciphers: '{good}'}}}}]\nroutes: [{{respond: {{status: 200}}}}]\n"
        assert load_text(text, base=tmp_path).config


def test_tls_1_2_has_no_ciphers_of_openssl_s_choice():  # T1
    for rules in (TlsRules(profile="modern", versions=["1.2"]), TlsRules(ciphers="")):
        assert rules.cipher_list == TlsRules().cipher_list


@pytest.mark.parametrize(("value", "read"), [("off", 0.0), ("50ms", 0.05), ("p95", "p95"), ("P95", "p95")])
def test_hedging_is_off_or_after_a_time(value: str, read: float | str):
    text = (
        f"listeners: [{{address: '127.0.0.1:1'}}]\nupstreams: {{a: {{endpoints: ['127.0.0.1:2'], retry: {{hedge: {value}}}}}}}\n"
    )
    text += "routes: [{name: r, upstream: a}]\n"
    c = load_text(text).config
    assert c.upstreams["a"].retry.hedge == read
    assert load_text(yaml.safe_dump(dump(c))).config.upstreams["a"].retry.hedge == read


@pytest.mark.parametrize(
    ("retry", "says"), [("hedge: p50", "p50"), ("hedge: 2h", "an hour"), ("hedge: p95, attempts: 0", "set attempts to 1")]
)
def test_hedging_that_cannot_be(retry: str, says: str):
    text = f"listeners: [{{address: '127.0.0.1:1'}}]\nupstreams: {{a: {{endpoints: ['127.0.0.1:2'], retry: {{{retry}}}}}}}\n"
    with pytest.raises(ConfigErrors) as e:
        load_text(text + "routes: [{name: r, upstream: a}]\n")
    assert "upstreams.a.retry" in str(e.value) and says in str(e.value)
