#!/usr/bin/env bash
# TLS from outside: testssl.sh, sslscan (both from Debian: apt-get install testssl.sh sslscan bsdextrautils) and sslyze (from PyPI, into an
# environment of its own below build/) against a listener of each profile. Ends with 1 when one of them finds something. Not part of the suite.
set -euo pipefail
cd "$(dirname "$0")/.."
for program in testssl sslscan openssl; do
    command -v "$program" > /dev/null || { echo "tls_scan: missing $program; on Debian: apt-get install testssl.sh sslscan openssl" >&2; exit 2; }
done
sslyze=build/sslyze/bin/sslyze
[ -x "$sslyze" ] || { python3 -m venv build/sslyze && build/sslyze/bin/pip -q install sslyze; }
work=$(mktemp -d)
gateway=
trap '[ -z "$gateway" ] || kill "$gateway" 2> /dev/null || true; rm -rf "$work"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/ca.key" -out "$work/ca.crt" -days 120 -subj "/CN=Scan CA" \
    -addext "keyUsage=critical,keyCertSign" 2> /dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/a.key" -out "$work/a.csr" -subj "/CN=localhost" 2> /dev/null
printf 'subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\nkeyUsage=critical,digitalSignature\n' > "$work/ext"
openssl x509 -req -in "$work/a.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days 90 -extfile "$work/ext" -out "$work/a.crt" 2> /dev/null
read -r modern intermediate admin < <(python3 -c '
import socket
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(x.getsockname()[1] for x in s))')
cat > "$work/gwcore.yaml" << END
workers: 1
admin: {address: "127.0.0.1:$admin"}
access_log: {path: "off"}
listeners:
  - {address: "127.0.0.1:$modern", tls: {profile: modern, certificates: [{cert: $work/a.crt, key: $work/a.key}]}}
  - {address: "127.0.0.1:$intermediate", tls: {profile: intermediate, certificates: [{cert: $work/a.crt, key: $work/a.key}]}}
routes: [{respond: {status: 200, headers: {Strict-Transport-Security: max-age=63072000}, body: OK}}]
END
.venv/bin/python -m gwcore run -c "$work/gwcore.yaml" > "$work/log" 2>&1 &
gateway=$!
for _ in $(seq 100); do (: > "/dev/tcp/127.0.0.1/$intermediate") 2> /dev/null && break; sleep 0.1; done
bad=0
for profile in modern intermediate; do
    port=${!profile}
    echo "== $profile"
    # its grade and chain speak of the certificate, which is ours alone
    timeout 300 testssl --quiet --color 0 --warnings off --ip 127.0.0.1 --add-ca "$work/ca.crt" --protocols --server-defaults --server-preference --fs --vulnerable \
        --each-cipher --jsonfile "$work/testssl-$profile.json" "localhost:$port" > "$work/testssl-$profile.txt" 2>&1 || true
    python3 - "$work/testssl-$profile.json" << 'END' || bad=1
import json, sys
rows = json.load(open(sys.argv[1]))
OURS = {  # of the scanner's own OpenSSL, of the certificate made for the scan, and of a host without DNS
    "engine_problem",
    "cert_ocspRevoked", "cert_crlDistributionPoints", "cert_ocspURL", "cert_revocation", "OCSP_stapling", "DNS_CAArecord", "cert_validityPeriod",
    "cert_expirationStatus", "cert_trust", "cert_chain_of_trust", "cert_mustStapleExtension", "certificate_transparency", "cert_caIssuers",
}
found = [r for r in rows if r["severity"] in ("LOW", "MEDIUM", "HIGH", "CRITICAL", "FATAL", "WARN") and r["id"].split(" ")[0] not in OURS]
print(f"testssl: {len(rows)} checks,", "no finding" if not found else "FOUND:")
for r in found:
    print("  ", r["severity"], r["id"], r["finding"])
sys.exit(bool(found) or len(rows) < 50)
END
    sslscan --no-colour --xml="$work/sslscan-$profile.xml" "127.0.0.1:$port" > /dev/null
    python3 - "$work/sslscan-$profile.xml" "$profile" << 'END' || bad=1
import sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
on = {f"{p.get('type')}{p.get('version')}" for p in root.iter("protocol") if p.get("enabled") == "1"}
want = {"tls1.3"} | ({"tls1.2"} if sys.argv[2] == "intermediate" else set())
found = [f"protocols {sorted(on)}"] if on != want else []
found += [f"cipher {c.get('cipher')}" for c in root.iter("cipher") if c.get("strength") not in ("strong", "acceptable")]  # TLS 1.3 is acceptable to it
found += [f"heartbleed {h.get('sslversion')}" for h in root.iter("heartbleed") if h.get("vulnerable") != "0"]
found += ["renegotiation" for r in root.iter("renegotiation") if r.get("supported") == "1" and r.get("secure") != "1"]
found += ["compression" for r in root.iter("compression") if r.get("supported") == "1"]
print("sslscan:", "no finding" if not found else "FOUND: " + "; ".join(found))
sys.exit(bool(found))
END
    "$sslyze" --mozilla_config "$profile" --certinfo_ca_file "$work/ca.crt" "localhost:$port" > "$work/sslyze-$profile.txt" 2>&1 || true
    if grep -q "OK - Compliant" "$work/sslyze-$profile.txt"; then
        echo "sslyze: compliant with Mozilla's $profile"
    else
        echo "sslyze: FOUND:"
        sed -n '/COMPLIANCE/,$p' "$work/sslyze-$profile.txt"
        bad=1
    fi
    grep -nE "VULNERABLE|UNEXPECTED|Exception" "$work/sslyze-$profile.txt" | grep -v "Not vulnerable\|not vulnerable" && bad=1
done
kill -0 "$gateway" || { echo "the gateway ended"; bad=1; }
[ -z "${KEEP:-}" ] || cp "$work"/*.txt "$work"/*.json "$work"/*.xml "$KEEP"
exit $bad
