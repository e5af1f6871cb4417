"""The sentences with which roles refuse variables; tests/hosts/test_preflight.py tests whole runs."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.roles import Role

SECRET = "0123456789abcdef"


def make_ca(days: int) -> dict[str, str]:
    """Return the variables of a CA that expires after some days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days))
    certificate = builder.sign(key, hashes.SHA256())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return {
        "tls_ca_certificate": certificate.public_bytes(pem).decode(),
        "tls_ca_key": key.private_bytes(pem, form, serialization.NoEncryption()).decode(),
    }


CA = make_ca(3650)
QUEUE = {"port": 6380, "users": {"shop": {"password": SECRET, "keys": ["*"]}}}
FACTS = {"distribution_release": "bookworm", "memtotal_mb": 4000, "installed_packages": []}
SITE: dict[str, Any] = {
    "names": ["www.example.com"],
    "upstreams": ["unix:/run/api/api.sock"],
    "auth_paths": ["/login"],
}


def sites(site: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Return the variables of a role nginx with changes of the site api, and with other sites."""
    more = {name: {"upstreams": [f"unix:/run/{name}.sock"]} | other for name, other in others.items()}
    return {"nginx_sites": {"api": SITE | site, **more}}


SOUND: dict[str, dict[str, Any]] = {
    "acme": {
        "acme_email": "ops@example.com",
        "acme_base_certificates": {"api": {"names": ["www.example.com"]}},
    },
    "base": {"base_admin_authorized_keys": ["ssh-ed25519 AAAAC3NzaC1 ops"]},
    "nginx": {"nginx_sites": {"api": SITE}},
    "postgresql": {
        "postgresql_base_roles": {"api_owner": {"password": SECRET}, "api": {"password": SECRET}},
        "postgresql_base_databases": {"api": {"owner": "api_owner", "app_role": "api"}},
    },
    "ssh": {},
    "tls": {
        **CA,
        "tls_certificates": [{"name": "host", "common_name": "web1", "sans": ["DNS:web1", "IP:192.0.2.11"]}],
    },
    "redis": {"redis_base_users": {"api": {"password": SECRET, "keys": ["api:*"]}}},
}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("acme", {"acme_email": "ops"}, 'acme_email is "ops": give the address to which the CA may write.'),
    (
        "acme",
        {"acme_authorities": {"letsencrypt": None}},
        "acme_authorities removes every CA: keep one, or set nginx_tls to files or environment.",
    ),
    (
        "acme",
        {"acme_authorities": {"own": {"directory_url": "http://ca.example.com/dir"}}},
        "Give each directory_url of acme_authorities as an https URL",
    ),
    (
        "acme",
        {"acme_authorities": {"zerossl": {"directory_url": "https://ca.example.com/dir", "eab_key_id": "k"}}},
        "acme_authorities has an eab_key_id for zerossl without its secret: put the MAC key into",
    ),
    (
        "acme",
        {"acme_authorities": {"own": {"url": "https://ca.example.com/dir"}}},
        "acme_authorities.own.url is unknown: the fields are directory_url, ca_certificate, eab_key_id.",
    ),
    (
        "acme",
        {"acme_certificates": {"api": {"names": ["*.example.com"]}}},
        "acme_certificates.api has *.example.com: set its challenge to dns, as wildcards need it.",
    ),
    (
        "acme",
        {"acme_certificates": {"api": {"challenge": "tls"}}},
        "Write each challenge of acme_certificates as http or dns.",
    ),
    (
        "acme",
        {"acme_certificates": {"api": {"key_type": "dsa"}}},
        "Write each key_type of acme_certificates as one of ec256, ec384, rsa2048, rsa4096.",
    ),
    (
        "acme",
        {"acme_challenge": "dns"},
        "The challenge dns needs acme_dns_provider: give a code that `lego dnshelp` lists",
    ),
    ("acme", {"acme_certificates": {"api": None}}, "acme_certificates is empty: no service has a host name."),
    ("acme", {"acme_timer_jitter_minutes": 90}, "acme_timer_jitter_minutes is 90: give 0 to 55"),
    ("nginx", {"nginx_tls": "acme"}, "nginx_tls is acme, and nginx_certificates is empty: name a service"),
    ("nginx", {"nginx_tls": "files"}, "nginx_tls is files: set nginx_tls_certificate_source and"),
    (
        "nginx",
        {"nginx_tls_certificate": "/etc/ssl/own.crt"},
        "nginx_tls is environment, and nginx_tls_certificate or nginx_tls_certificate_source names a",
    ),
    ("tls", {"tls_ca_key": "x"}, "tls_ca_certificate and tls_ca_key are not both PEM: make the secrets"),
    (
        "tls",
        {"tls_ca_key": make_ca(9)["tls_ca_key"]},
        "tls_ca_key does not belong to tls_ca_certificate: put",
    ),
    ("tls", make_ca(9), "The CA in the vault expires before a certificate of tls_lifetime_days would"),
    ("tls", {"tls_lifetime_days": 398}, "tls_lifetime_days is 398: give 1 to 397, browsers refuse more."),
    (
        "tls",
        {"tls_certificates": [{"name": "ca", "common_name": "web1", "sans": ["DNS:web1"]}]},
        'tls_certificates has the name "ca": use letters, digits and dashes, and not "ca" or "clients-".',
    ),
    (
        "tls",
        {"tls_certificates": [{"name": "host", "common_name": "web1", "sans": ["web1"]}]},
        'tls_certificates has the SAN "web1": give DNS:name or IP:address.',
    ),
    (
        "tls",
        {"tls_certificates": [{"name": "host", "common_name": "x" * 65, "sans": ["DNS:web1"]}]},
        "tls_certificates has a common_name of more than 64 letters",
    ),
    ("base", {"base_admin_user": "root"}, 'base_admin_user is "root": name a Unix account other than root'),
    (
        "base",
        {"base_admin_authorized_keys": []},
        "base_admin_authorized_keys is empty: give at least one public",
    ),
    ("base", {"base_admin_authorized_keys": ["AAAA"]}, 'is not a public SSH key ("AAAA"): give lines as in'),
    (
        "base",
        {"base_operators": {"ops": {"ssh_keys": ["ssh-ed25519 AAAAC3NzaC1 a"], "sudo": False}}},
        'base_operators has "ops": give names of Unix accounts other than root and base_admin_user.',
    ),
    (
        "base",
        {
            "base_operators": {
                "al": {"ssh_keys": ["ssh-ed25519 AAAAC3NzaC1 a"], "sudo_without_password": False}
            }
        },
        "base_operators has al with sudo and without a password:",
    ),
    ("base", {"base_operators": {"al": {"sudo": False}}}, "base_operators has al without ssh_keys: give the"),
    (
        "base",
        {"base_operators": {"al": {"ssh_keys": ["AAAA"], "sudo": False}}},
        'base_operators has an entry that is not a public SSH key ("AAAA"): give lines',
    ),
    (
        "base",
        {"base_operators": {"al": {"ssh_keys": ["ssh-ed25519 AAAAC3NzaC1 a"], "password": "secret"}}},
        "base_operators has a password of al that is not a hash: give the output of `mkpasswd`.",
    ),
    (
        "base",
        {"base_operators": {"al": {"ssh_keys": ["ssh-ed25519 AAAAC3NzaC1 a"]}}},
        "base_operators has al with sudo and without a password: give the hash",
    ),
    ("base", {"base_umask": "27"}, 'base_umask is "27": give three quoted octal digits such as "027".'),
    (
        "base",
        {"base_mount_options": {"/home": "; reboot"}},
        "base_mount_options has other options than fstab(5) for /home: give nosuid,nodev or null.",
    ),
    *(
        (
            "base",
            {"base_mount_options": {path: "nosuid"}},
            f'base_mount_options has the mount point "{path}": give absolute paths of letters',
        )
        for path in ("/srv/my data", "/srv'; reboot; '", "/srv/%n", "srv")
    ),
    ("base", {"base_container": True, "base_audit": True}, "base_audit is true, and base_container too: a"),
    ("ssh", {"ssh_accounts": ["a b"]}, 'ssh_accounts has "a b": give names of Unix accounts.'),
    (
        "ssh",
        {"ssh_accounts": ["root"]},
        "ssh_accounts has root: list the addresses from which root may log in",
    ),
    ("ssh", {"ssh_root_addresses": ["mon1"]}, 'ssh_root_addresses or ssh_exempt_addresses has "mon1": give'),
    ("ssh", {"ssh_permit_open": ["9090"]}, 'ssh_permit_open has "9090": give destinations as address:port'),
    ("ssh", {"ssh_max_startups": "100"}, 'ssh_max_startups is "100": give start:rate:full, such as'),
    ("ssh", {"ssh_login_grace_seconds": 1}, "ssh_login_grace_seconds is 1: give 5 or more, a login needs"),
    ("ssh", {"ssh_startups_per_source": 1}, "ssh_startups_per_source is 1: give 2 or more, the role itself"),
    ("ssh", {"ssh_confirm_seconds": 5}, "ssh_confirm_seconds is 5: give 15 or more, a second connection"),
    ("ssh", {"ssh_settings": {"max sessions": 1}}, 'ssh_settings has "max sessions": give names as in'),
    (
        "ssh",
        {"ssh_settings": {"PasswordAuthentication": None}},
        "ssh_settings has PasswordAuthentication: remove it, the role admits logins with public keys only.",
    ),
    (
        "ssh",
        {"ssh_settings": {"KBDInteractiveAuthentication": True}},
        "ssh_settings has KBDInteractiveAuthentication: remove it",
    ),
    (
        "ssh",
        {"ssh_settings": {"AuthenticationMethods": "password"}},
        "ssh_settings has AuthenticationMethods: remove it",
    ),
    (
        "ssh",
        {"ssh_settings": {"Port": 2222}},
        "ssh_settings has Port: accounts and root have ssh_accounts and",
    ),
    (
        "base",
        {"base_timezone": "Nowhere"},
        'base_timezone is "Nowhere": give a name from /usr/share/zoneinfo',
    ),
    ("base", {"base_locale": "de_AT"}, 'base_locale is "de_AT": give C.UTF-8 or a name such as de_AT.UTF-8.'),
    ("base", {"base_journal_max_size": "1"}, 'base_journal_max_size is "1": give a size such as 500M or 4G.'),
    (
        "base",
        {"base_sysctl": {"swappiness": 1}},
        'base_sysctl has "swappiness": give names as sysctl(8) prints',
    ),
    (
        "postgresql",
        {"ansible_facts": FACTS | {"installed_packages": ["postgresql-13"]}, "inventory_hostname": "db1"},
        "db1 has postgresql-13, and its release ships PostgreSQL 15: move the database with"
        " `apt install postgresql-15`, `pg_dropcluster --stop 15 main` and `pg_upgradecluster 13 main`,"
        " then remove the old package and run again.",
    ),
    (
        "postgresql",
        {"postgresql_memory_percent": 4},
        "postgresql_memory_percent is 4: set it between 5 and 90.",
    ),
    (
        "postgresql",
        {"ansible_facts": FACTS | {"memtotal_mb": 1000}, "postgresql_memory_percent": 5},
        "postgresql_memory_percent leaves PostgreSQL 49 MiB of this host's memory: it needs at least 128.",
    ),
    (
        "postgresql",
        {"postgresql_listen_addresses": ["*"]},
        "postgresql_listen_addresses must name private addresses",
    ),
    (
        "postgresql",
        {"postgresql_databases": {"api": {"client_addresses": ["10.1.2.3"]}}},
        "take networks such as 10.1.2.3/32, not 10.1.2.3.",
    ),
    (
        "postgresql",
        {"postgresql_databases": {"api": {"init_sql": "/nonexistent/init.sql"}}},
        "postgresql_databases has an init_sql that does not exist on the control node: /nonexistent/init.sql."
        " Write its absolute path, or one that starts with {{ inventory_dir }}.",
    ),
    (
        "postgresql",
        {"postgresql_databases": {"reports": {"owner": "reports"}}},
        "postgresql_databases uses roles that postgresql_roles does not define: reports.",
    ),
    (
        "postgresql",
        {
            "postgresql_databases": {"api": {"migration_role": "deployer"}},
            "postgresql_roles": {"deployer": {"password": SECRET}},
        },
        "A database in postgresql_databases has an app_role or a migration_role: beside an",
    ),
    (
        "postgresql",
        {"postgresql_databases": {"api": {"app_role": None, "migration_role": "api_owner"}}},
        "A migration_role in postgresql_databases must be a role that neither owns a database nor serves.",
    ),
    (
        "postgresql",
        {"postgresql_databases": {"reports": {"onwer": "reports"}}},
        "postgresql_databases.reports.onwer is unknown: write owner."
        " postgresql_databases.reports.owner is missing: set it to a string.",
    ),
    (
        "postgresql",
        {"postgresql_databases": {"api": {"owner": "api"}}},
        "must not be both owner and app_role",
    ),
    (
        "postgresql",
        {"postgresql_roles": {"api": {"password": "short"}}},
        "Every password in postgresql_roles must",
    ),
    (
        "postgresql",
        {"postgresql_monitor_role": "api"},
        "postgresql_monitor_role must name a Unix account that is",
    ),
    (
        "redis",
        {"redis_maxmemory_mb": 8},
        "cache: set the memory limit (redis_maxmemory_mb, or maxmemory_mb in redis_instances) to 16 MiB",
    ),
    ("redis", {"redis_maxmemory_mb": 3500}, "more than three quarters of this host's 4000: lower"),
    (
        "redis",
        {"redis_users": {"api": None}},
        "cache has no users, and the default user is off: add at least one to redis_users",
    ),
    (
        "redis",
        {"redis_users": {"default": {"password": SECRET, "keys": ["*"]}}},
        "never name the user default.",
    ),
    (
        "redis",
        {"redis_users": {"api": {"keys": []}}},
        "Every Redis user needs at least one key pattern",
    ),
    (
        "redis",
        {"redis_users": {"api": {"commands": ["flushall"]}}},
        "Commands of Redis users look like +@read",
    ),
    (
        "redis",
        {"redis_users": {"new": {"keys": ["a:*"]}}},
        "redis_users.new.password is missing: set it to a string.",
    ),
    (
        "redis",
        {"redis_instances": {"queue": {"port": 6380}}},
        "queue has no users, and the default user is off: add at least one",
    ),
    (
        "redis",
        {"redis_instances": {"queue": QUEUE | {"users": {"shop": {"keys": ["*"]}}}}},
        "redis_instances.queue.users.shop.password is missing: set it to a string.",
    ),
    (
        "redis",
        {"redis_instances": {"queue": QUEUE | {"port": 6379}}},
        "Instances of Redis have the same port: give redis_port and each port in redis_instances",
    ),
    (
        "redis",
        {"redis_instances": {"queue": QUEUE | {"maxmemory_mb": 2900}}},
        "The memory limits of Redis (cache, queue) sum up to 3296 MiB, more than three quarters of",
    ),
    (
        "redis",
        {"redis_instances": {"queue": QUEUE | {"persistence": "disk"}}},
        "persistence in redis_instances takes none, rdb or aof.",
    ),
    (
        "redis",
        {"redis_instances": {"cache": QUEUE}},
        "redis_instances has the entry cache: remove it, the variables redis_port, redis_users and so on",
    ),
    (
        "postgresql",
        {"postgresql_databases": {"api": {"extensions": ["pg trgm"]}}},
        "Names of extensions take lower-case letters, digits, '_' and '-', not pg trgm.",
    ),
    (
        "postgresql",
        {
            "postgresql_base_roles": {
                "api_owner": {"password": SECRET},
                "api": {"password": SECRET, "connection_limit": 90},
            }
        },
        "The services and Grafana may have 90 connections, and postgresql_max_connections is 100,",
    ),
    ("redis", {"redis_max_clients": 50}, "redis_max_clients is 50: set it between 100 and 50000."),
    ("redis", {"redis_idle_timeout_seconds": 5}, "redis_idle_timeout_seconds is 5: set it between 30 and"),
    (
        "redis",
        {"redis_users": {"api": "secret"}},
        "redis_users.api must be a dictionary with password, other_password, keys,",
    ),
    (
        "nginx",
        {"nginx_edge": False},
        "Set nginx_edge or nginx_backend, or leave this host out of both groups.",
    ),
    (
        "nginx",
        sites({"names": []}),
        "services.api: names is empty: list the host names that the site answers to.",
    ),
    (
        "nginx",
        sites({"upstreams": []}),
        "No site of nginx_sites has upstreams: put a host into the group app, or take this one out of the",
    ),
    (
        "nginx",
        sites({"upstreams": ["10.1.2.3:8443", "unix:/run/api.sock"]}),
        "services.api: use only sockets or only host:port as upstreams, not both.",
    ),
    (
        "nginx",
        {"nginx_guard_listen": ["127.0.0.1:8444"]},
        "Set nginx_guard_listen and nginx_guard_users together",
    ),
    (
        "nginx",
        {"nginx_headers": {"x-frame-options": "SAMEORIGIN"}},
        "services.api: headers has X-Frame-Options, x-frame-options in two spellings: write it once.",
    ),
    (
        "nginx",
        {"nginx_trusted_proxies": ["0.0.0.0/0"]},
        "0.0.0.0/0 or ::/0 in nginx_trusted_proxies lets clients choose",
    ),
    (
        "nginx",
        {"nginx_proxy_protocol_ports": {"https": 4430}},
        "Name the proxies in nginx_trusted_proxies: nginx_proxy_protocol_ports takes",
    ),
    (
        "nginx",
        {"nginx_proxy_protocol_ports": {"quic": 4430}, "nginx_trusted_proxies": ["10.1.2.3"]},
        "Give nginx_proxy_protocol_ports the keys http and https only.",
    ),
    (
        "nginx",
        {"nginx_proxy_protocol_ports": {"https": 443}, "nginx_trusted_proxies": ["10.1.2.3"]},
        "Give each of nginx_proxy_protocol_ports a port of its own: 80, 443, 443",
    ),
    (
        "nginx",
        {"nginx_http3": True, "ansible_facts": {"distribution_release": "bookworm"}},
        "nginx_http3 needs Debian 13",
    ),
    (
        "nginx",
        {"nginx_static_directory": "/home/me/static"},
        "services.api: give directories of files as paths of letters, digits, dots and dashes without",
    ),
    (
        "nginx",
        {
            "nginx_media_directory": "/srv/media",
            "nginx_rate_limits": {"media": {"path": "/media/", "rate": "5r/s", "burst": 5}},
        },
        "services.api: /media/ is in private_paths or nginx_consoles, or is a directory of files, and",
    ),
    (
        "nginx",
        {"nginx_stream_paths": {"/ws/": {"idle_seconds": 0}}},
        "services.api: give each of stream_paths 1 to 86400 idle_seconds.",
    ),
    (
        "nginx",
        {"nginx_stream_paths": {"/x": {"idle_seconds": 5}}, "nginx_cached_paths": {"/x": {"seconds": 5}}},
        "services.api: /x is in stream_paths and cached_paths: a cache would hold the stream back.",
    ),
    (
        "nginx",
        {"nginx_cors_origins": ["https://shop.example/path"]},
        "services.api: write each of cors_origins as an origin without a path, such as https://shop.example,",
    ),
    (
        "nginx",
        {"nginx_response_header_limit": "16"},
        "Write nginx_response_header_limit as a number of kilobytes, such as 16k.",
    ),
    (
        "nginx",
        {"nginx_untrusted_headers": ["X Own"]},
        "Write nginx_credential_headers and nginx_untrusted_headers as header names.",
    ),
    (
        "nginx",
        {"nginx_rate_limits": {"Upper": {"path": "/x", "rate": "5r/s", "burst": 5}}},
        "services.api: name the zones of rate_limits in lower case letters, not Upper.",
    ),
    (
        "nginx",
        {"nginx_rate_limits": {"write": {"methods": ["post"]}}},
        "services.api: write each of methods as in a request, such as POST, not post.",
    ),
    (
        "nginx",
        {"nginx_rate_limits": {"api": {"key_rate": "9"}}},
        "services.api: write each rate of rate_limits as 10r/s or 30r/m, not 9.",
    ),
    (
        "nginx",
        {
            "nginx_rate_limits": {
                "changes": {"path": "/", "methods": ["PUT"], "rate": "5r/s", "burst": 5},
                "puts": {"path": "/", "methods": ["PUT"], "rate": "5r/s", "burst": 5},
            }
        },
        "services.api: rate_limits has two zones for /: merge them, or set one to null.",
    ),
    (
        "nginx",
        sites({"connections_per_client": 0}),
        "services.api: give connections_per_client as 1 or more, not 0.",
    ),
    (
        "nginx",
        {"nginx_key_headers": ["X-Key", "x-key"]},
        "Write nginx_key_headers as header names, each once.",
    ),
    (
        "nginx",
        {"nginx_rate_limit_exempt": ["office"]},
        "Write each entry of nginx_rate_limit_exempt as an address or network (10.1.2.0/24).",
    ),
    (
        "nginx",
        {"nginx_rate_limit_exempt": ["0.0.0.0/0"]},
        "0.0.0.0/0 or ::/0 in nginx_rate_limit_exempt exempts every client: set zones of",
    ),
    (
        "nginx",
        {"nginx_tls_key_source": "/none"},
        "Set nginx_tls_certificate_source and nginx_tls_key_source together.",
    ),
    (
        "nginx",
        {"nginx_tls_key": "/etc/own.key", "__nginx_key_read": {"rc": 1}},
        "Nginx runs as www-data, which cannot read /etc/own.key: give the file",
    ),
    (
        "nginx",
        {"nginx_rate_limits": {"search": {"path": "/search", "rate": "5r/s"}}},
        "nginx_rate_limits.search.burst is missing: set it to a whole number.",
    ),
    (
        "nginx",
        {"nginx_rate_limits": {"api": {"brust": 5}}},
        "nginx_rate_limits.api.brust is unknown: write burst.",
    ),
    (
        "nginx",
        {"nginx_rate_limits": {"api": {"rate": "5"}}},
        "services.api: write each rate of rate_limits as 10r/s or 30r/m, not 5.",
    ),
    (
        "nginx",
        {"nginx_rate_limits": {"second": {"path": "/", "rate": "5r/s", "burst": 5}}},
        "services.api: rate_limits has two zones for /: merge them, or set one to null.",
    ),
    (
        "nginx",
        {"nginx_cached_paths": {"/metrics": {"seconds": 2}}},
        "services.api: /metrics is in private_paths or nginx_consoles, or is a directory of files, and also"
        " in rate_limits, cached_paths, quiet_paths or stream_paths: remove it from one of them.",
    ),
    (
        "nginx",
        {"nginx_cached_paths": {"/x": {"seconds": 3601}}},
        "services.api: give each of cached_paths 1 to 3600 seconds.",
    ),
    (
        "nginx",
        sites({"path": "shop"}),
        "services.api: write path as / or with a slash at both ends, such as /shop/, not shop.",
    ),
    (
        "nginx",
        sites({"rate_limits": {"search": {"path": "/search", "rate": "5r/s"}}}),
        "services.api.rate_limits.search.burst is missing: set it to a whole number.",
    ),
    (
        "nginx",
        sites({}, shop={"names": ["www.example.com"]}),
        "services.api and services.shop both serve www.example.com/: give one of them another name or path.",
    ),
    (
        "nginx",
        sites({}, shop={"names": ["shop.example"], "redirect_names": ["www.example.com"]}),
        "services.shop.redirect_names has www.example.com, which is also served: remove it from one of them.",
    ),
    (
        "nginx",
        sites(
            {"redirect_names": ["a.example"]},
            shop={"names": ["shop.example"], "redirect_names": ["a.example"]},
        ),
        "a.example cannot be redirected to both www.example.com and shop.example: remove it from one",
    ),
    (
        "nginx",
        sites({"names": ["*.example.com"], "redirect_names": ["example.com"]}),
        "services.api: redirect_names lead to the first of names, *.example.com: put a whole name first.",
    ),
    (
        "nginx",
        sites({"static": [{"path": "../etc", "serve_at": "/static/"}], "socket": "/run/api/api.sock"}),
        "services.api: give directories of files as paths of letters, digits, dots and dashes",
    ),
    (
        "nginx",
        sites({"static": [{"path": "static", "serve_at": "/static"}], "socket": "/run/api/api.sock"}),
        "services.api: write each serve_at with a slash at both ends, not /static.",
    ),
    (
        "nginx",
        sites({"path": "/grafana/"})
        | {"nginx_consoles": {"grafana": {"path": "/grafana/", "address": "a:3000"}}},
        "services.api: path /grafana/ is also that of an operators' tool in nginx_consoles: give it another.",
    ),
]


def role(name: str, variables: dict[str, Any]) -> Role:
    """Return a role with sound variables but for these."""
    return Role(name, **{"ansible_facts": FACTS} | SOUND[name] | variables)


@pytest.mark.parametrize("name", SOUND)
def test_sound_variables_are_accepted(name: str) -> None:
    assert role(name, {}).refusals() == []


@pytest.mark.parametrize("name", ["nginx", "postgresql"])
def test_an_unsupported_release_is_refused(name: str) -> None:
    (sentence,) = role(name, {"ansible_facts": FACTS | {"distribution_release": "bullseye"}}).refusals()
    assert f"The {name} role does not support" in sentence


@pytest.mark.parametrize(
    ("name", "variables", "part"), REFUSED, ids=[f"{case[0]}: {case[2][:40]}" for case in REFUSED]
)
def test_a_fault_gets_one_sentence(name: str, variables: dict[str, Any], part: str) -> None:
    (sentence,) = role(name, variables).refusals()
    assert part in sentence
    assert sentence.endswith(".")
