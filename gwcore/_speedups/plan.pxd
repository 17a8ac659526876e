# Level 3. The plan: the whole configuration as one relocatable blob. Offsets only, so it is mapped and used as it is.
from gwcore._speedups.breaker_core cimport BreakerRules
from gwcore._speedups.types cimport Str, size_t, uint32_t, uint64_t
from libc.stdint cimport int64_t, uint8_t, uint16_t

cdef enum:
    PLAN_MAGIC = 0x70637767  # "gwcp"
    HASH_SEED = 0x12345

cdef enum TargetKind: TARGET_UPSTREAM, TARGET_RESPOND
cdef enum PathMatch: MATCH_EXACT, MATCH_PREFIX, MATCH_REGEX
cdef enum Balance: BALANCE_ROUND_ROBIN, BALANCE_LEAST_REQUEST, BALANCE_EWMA, BALANCE_HASH, BALANCE_RANDOM
cdef enum HashBy: HASH_CLIENT, HASH_HEADER, HASH_COOKIE
cdef enum CondKind: COND_HEADER, COND_QUERY
cdef enum HeaderOp: OP_REMOVE, OP_SET, OP_ADD
cdef enum: VIA_REQUEST = 1, VIA_RESPONSE = 2
cdef enum: CACHE_IGNORE = 1, CACHE_COOKIES = 2      # what clients say of caching does not count; answers with Set-Cookie are kept

cdef struct Array:           # n structs at off
    uint32_t off
    uint32_t n

cdef struct HeaderEdit:
    Str name                 # lower case for matching
    Str line                 # "Name: value\r\n", ready to send
    uint32_t op

cdef struct Cond:            # one header or query condition
    Str name
    Str value
    uint32_t kind
    uint32_t any_value       # only presence counts

cdef struct Target:          # weighted
    uint32_t upstream        # index
    uint32_t weight

cdef enum StepKind: STEP_LIVE, STEP_LOCAL, STEP_REDIS, STEP_STATIC
cdef enum PartKind: PART_TEXT, PART_PATH, PART_METHOD, PART_ID, PART_HOST, PART_TIER, PART_ROUTE, PART_REASON, PART_QUERY, PART_HEADER
cdef enum Escape: ESCAPE_PLAIN, ESCAPE_JSON, ESCAPE_MARKUP

cdef struct Step:            # of a ladder
    uint32_t kind            # StepKind
    uint32_t deadline_ms     # of STEP_REDIS

cdef struct Part:            # of a static body
    Str text                 # as it is, or the name of the field that is put in
    uint32_t kind            # PartKind
    uint32_t unused

cdef struct Ladder:          # what a request may get, in order
    Array steps
    Array parts              # body of the static step
    Str head                 # its status line and fields, up to "Content-Length: " where it may have a body; without Date and the empty line
    uint64_t on_status       # bit per status from 500: answers of that kind are failures
    uint32_t status          # of the static step; 0 = there is none
    uint32_t escape          # Escape
    uint32_t keeps           # the body needs what is not kept of a head
    uint32_t plain           # the body is the same for everybody
    uint32_t budget_ms       # the live try ends by then, when something follows it
    uint32_t fresh_ms
    uint32_t usable_ms
    uint32_t copies          # a step serves copies: 1 after live, 2 before it
    uint32_t enforce         # the budget ends the live try though nothing follows it
    uint32_t queue           # requests that may wait to be compensated; 0 = none is
    uint32_t compensate_bytes    # of a body
    uint32_t compensate_ttl_ms

cdef struct Route:
    Str name
    Str path                 # exact path, or prefix without its last slash, or the regex
    uint64_t methods         # bit per llhttp method; 0 = all
    Array conds
    Array targets
    Array request_edits
    Array response_edits
    Array upgrades           # Str: tokens in lower case
    Str head                 # respond: status line and fields, without Date and the empty line
    Str body
    Str replace              # rewrite: put before what is left of the path
    uint32_t strip           # rewrite: bytes of prefix taken off the path
    uint32_t slot            # cell in the shared segment
    uint32_t next            # index + 1 of the next route with the same key
    uint32_t regex           # index + 1 of the compiled regex
    uint32_t weight_sum
    uint32_t status
    uint32_t rewrites        # strip or replace is set
    uint8_t kind             # TargetKind
    uint8_t match            # PathMatch
    uint8_t trailers
    uint8_t tier
    uint8_t host_kind        # 0 = any; for log and explain
    uint32_t ladder[3]       # by tier: number of the Ladder + 1; 0 = none
    uint32_t body_idle_ms
    uint32_t client_write_ms
    uint32_t response_ms
    uint32_t idle_ms
    uint32_t deadline_ms     # 0 = none
    uint32_t tunnel_idle_ms
    uint32_t body_min_rate   # bytes per second; 0 = off
    uint32_t buffer_high
    uint32_t buffer_low
    uint32_t replay_bytes
    uint64_t body_bytes      # 0 = no limit
    uint32_t cache_on        # copies of answers are kept
    uint32_t cache_flags     # CACHE_IGNORE ...
    uint32_t cache_ttl_s     # at most
    uint32_t cache_revalidate_s
    uint32_t cache_error_s
    uint32_t cache_usable_s
    uint32_t cache_object    # bytes of the largest body
    uint32_t cache_variants

cdef struct EndpointSpec:
    Str name                 # as written in the configuration
    uint8_t sockaddr[28]     # sockaddr_in or sockaddr_in6; unix sockets use path
    Str path                 # unix socket
    Str tls_name             # what its certificate must be for, with a NUL; empty = not looked at
    Str tls_sni              # the server name we ask for, with a NUL; empty = none
    uint64_t identity        # connections of another are not reused: of the TLS
    uint32_t tls_ip          # tls_name is an address
    uint32_t sockaddr_len    # 0 = the name does not resolve
    uint8_t other[28]        # the same host by an address of the other family
    uint32_t other_len       # 0 = it has none
    uint32_t group           # the same number: addresses of one name; 0 = no name
    uint32_t weight
    uint32_t slot

cdef struct UpstreamSpec:
    Str name
    Array endpoints
    Str host                 # literal Host to send; empty = the client's
    Str hash_name
    uint32_t slot
    uint32_t balance
    uint32_t hash_by
    uint32_t hash_bound_pct  # 125 = 1.25 times the mean
    uint32_t max_connections
    uint32_t max_idle
    uint32_t min_idle
    uint32_t max_requests
    uint32_t idle_ms
    uint32_t max_age_ms
    uint32_t queue_size
    uint32_t queue_ms
    uint32_t queue_plain     # in order of arrival
    uint32_t limit_start     # of the concurrency limit; 0 = none
    uint32_t limit_min
    uint32_t limit_max       # equal to limit_min: fixed
    uint32_t connect_ms
    uint32_t write_ms
    uint32_t response_ms
    uint32_t body_idle_ms
    uint64_t retry_methods   # bit per llhttp method: may be sent twice
    uint32_t retry_on        # retry.RetryOn
    uint32_t retry_extra     # attempts after the first
    uint32_t per_try_ms      # 0 = no limit of its own
    uint32_t hedge_ms        # 0 = off; HEDGE_P95
    uint32_t backoff_ms
    uint32_t backoff_most_ms
    uint32_t budget_milli    # deposit of a first attempt, in thousandths of a retry
    uint32_t budget_per_s
    uint32_t proxy_protocol  # version of the PROXY header that new connections begin with; 0 = none
    uint32_t slow_start_ms
    uint32_t panic_pct       # fewer sound endpoints than this share, and nothing is held against them
    uint32_t template_       # pool.granularity: template
    uint32_t tls             # index of PlanHead.clients + 1; 0 = plain
    uint32_t tls_ms
    uint32_t breaker_on
    uint32_t outlier_on
    uint32_t count_429       # as overload
    uint32_t eject_most_pct  # of the endpoints
    uint32_t eject_above_pct # failure ratio over the siblings' median
    BreakerRules breaker
    BreakerRules outlier     # of each endpoint
    Str principal            # lower case name of the field whose value is part of the template

cdef struct Key:             # open addressing: (host, kind, path) -> first route
    uint64_t hash            # 0 = empty
    uint32_t host
    uint32_t kind
    Str path
    uint32_t route           # index + 1

cdef struct HostKey:
    uint64_t hash
    Str name                 # lower case; a wildcard without its "*"
    uint32_t id              # 1..; 0 is "any host"
    uint32_t wildcard

cdef struct HostInfo:        # by host id
    Array regexes            # uint32 route index + 1, in file order
    uint32_t has_exact
    uint32_t depth           # most segments a prefix of this host has
    uint32_t has_prefix
    uint32_t unused

cdef struct Cidr:
    uint8_t net[16]          # IPv4 as ::ffff:a.b.c.d
    uint32_t bits

cdef struct CertSpec:        # one certificate
    Str chain                # PEM, the certificate itself first
    Str key                  # PEM
    Str ocsp                 # DER of an OCSP response; empty = none

cdef struct TlsPolicy:       # what is chosen by a server name: certificates that differ in their key's kind only
    Array certs              # uint32 index of TlsSpec.certs
    uint8_t identity[32]     # no session of another identity is resumed

cdef struct TlsRules:        # texts end with a NUL that their length does not count
    Str ciphers
    Str suites               # of TLS 1.3
    Str groups
    Str alpn                 # as on the wire: length, name, ...
    uint32_t min_version     # OpenSSL's numbers
    uint32_t max_version

cdef struct TlsClientSpec:   # of one upstream
    TlsRules rules
    Str ca                   # PEM; empty = the system's
    CertSpec cert            # ours, where one is wanted
    uint32_t verify

cdef struct TlsSpec:         # of one listener
    TlsRules rules
    Array certs
    Array policies           # the first one is for clients that name no server, or one that nobody knows
    Array names              # HostKey, power of two; id is the policy's index + 1
    Str client_ca            # PEM; empty = no client certificates
    Str client_crl           # PEM
    uint32_t client_auth     # 0 off, 1 optional, 2 required
    uint32_t client_depth
    uint32_t refuse_unknown  # names: an alert instead of the first policy
    uint32_t sessions        # how they are resumed: 0 not at all, 1 by tickets, 2 from the store
    uint32_t redis           # the store: Redis is behind it
    uint32_t lifetime_s      # of a session
    uint32_t asynchronous    # a provider may let handshakes wait
    uint32_t early           # early data is taken

cdef struct ListenerSpec:
    Str address
    uint32_t proxy_protocol  # a PROXY header comes first
    uint32_t tls             # index of PlanHead.tls + 1; 0 = plain

cdef struct PlanHead:
    uint32_t magic
    uint32_t layout          # sizes of the structs, so that two builds never misread each other
    uint64_t size
    uint64_t version
    Array routes
    Array upstreams
    Array keys               # power of two
    Array hosts              # power of two
    Array host_infos
    Array trusted
    Array listeners
    Array tls
    Array clients            # TlsClientSpec
    Array regexes            # uint32 route index
    Array providers          # Str, each with a NUL
    Str provider_path        # the same
    Str provider_properties
    Str engine
    Str via_line             # "Via: 1.1 name\r\n"
    Str via_name
    Str id_header            # lower case name of the request id field
    Str id_line              # "X-Request-ID: "
    Str server_line          # of our own answers
    Str deadline_name        # lower case name of the field that tells how much time is left; empty = none does
    Str deadline_line        # "X-Request-Timeout-Ms: "
    Array ladders
    Str tier_name            # lower case name of the field that chooses a tier; empty = none does
    uint32_t latency_ms[3]   # what a tier promises
    uint32_t has_wildcards
    uint32_t via
    uint32_t header_ms
    uint32_t tls_handshake_ms
    uint32_t handshake_threads
    uint32_t handshake_queue
    uint32_t fault_fail      # of 65536 handshakes
    uint32_t fault_stall
    uint32_t fault_cut
    uint32_t keepalive_ms
    uint32_t linger_ms
    uint32_t linger_bytes
    uint32_t drain_ms
    uint32_t url_bytes
    uint32_t head_bytes
    uint32_t fields
    uint32_t trailer_bytes
    uint32_t chunk_ext_bytes
    uint32_t response_head_bytes
    uint32_t response_fields
    uint32_t connections     # per worker; 0 = by descriptors
    uint32_t connections_per_client  # over all workers; 0 = no limit
    uint32_t requests_per_connection
    uint32_t connection_age_ms
    uint32_t underscore_drop
    uint32_t body_rate_grace_ms
    uint32_t workers
    uint32_t log_block
    uint32_t log_buffer
    uint32_t log_flush_ms
    uint32_t client_write_ms
    uint32_t shed_from[3]    # thousandths of load from which requests of a tier are shed; 0 = none is
    uint32_t lag_ms          # a loop so late is a load of 1
    uint32_t wait_ms         # events that wait so long are one, too
    uint64_t memory_bytes    # that one worker may use
    uint64_t buffers_total
    uint64_t splice_bytes    # bodies with so much left move by splice; 0 = none

cdef inline const char *plan_text(const PlanHead *p, Str s) noexcept nogil:
    return <const char *>p + s.off

cdef inline const Route *plan_route(const PlanHead *p, uint32_t i) noexcept nogil:
    return <const Route *>(<const char *>p + p.routes.off) + i

cdef inline const Ladder *plan_ladder(const PlanHead *p, uint32_t number) noexcept nogil:
    """By number, from 1; NULL for 0."""
    return <const Ladder *>(<const char *>p + p.ladders.off) + (number - 1) if number else NULL

cdef inline const Part *ladder_part(const PlanHead *p, const Ladder *l, uint32_t i) noexcept nogil:
    return <const Part *>(<const char *>p + l.parts.off) + i

cdef inline const Str *plan_upgrade(const PlanHead *p, const Route *r, uint32_t i) noexcept nogil:
    return <const Str *>(<const char *>p + r.upgrades.off) + i

cdef inline const UpstreamSpec *plan_upstream(const PlanHead *p, uint32_t i) noexcept nogil:
    return <const UpstreamSpec *>(<const char *>p + p.upstreams.off) + i

cdef inline const EndpointSpec *plan_endpoint(const PlanHead *p, const UpstreamSpec *u, uint32_t i) noexcept nogil:
    return <const EndpointSpec *>(<const char *>p + u.endpoints.off) + i

cdef inline uint64_t key_mix(uint64_t path_hash, uint32_t host, uint32_t kind) noexcept nogil:
    return (path_hash ^ (<uint64_t>host * <uint64_t>0x1e3779b97f4a7c15) ^ kind) | 1

cdef inline const TlsClientSpec *plan_client(const PlanHead *p, uint32_t i) noexcept nogil:
    return <const TlsClientSpec *>(<const char *>p + p.clients.off) + i

cdef inline const TlsSpec *plan_tls(const PlanHead *p, uint32_t i) noexcept nogil:
    return <const TlsSpec *>(<const char *>p + p.tls.off) + i

cdef uint32_t name_id(const PlanHead *p, Array names, const char *name, size_t n, uint32_t wildcard) noexcept nogil
cdef uint64_t hash_bytes(uint64_t seed, const char *at, size_t size) noexcept nogil
cdef uint32_t plan_layout() noexcept nogil
cdef bint plan_trusts(const PlanHead *p, const uint8_t *peer) noexcept nogil
cdef const char *plan_refused(const PlanHead *p, size_t size) noexcept nogil
