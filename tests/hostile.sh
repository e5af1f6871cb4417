#!/bin/sh
# Usage: hostile.sh USER, as root on a lab host.
# Makes a login of this user, and sudo, leave the most inconvenient environment that a real host may have.
set -eu
home=$(getent passwd "$1" | cut -d: -f6)
private=/var/tmp/private-$1
install --directory --owner="$1" --mode=0700 "$private"
cat > "$home/.bashrc" <<'EOF'
echo 'Authorised users only.'
echo '[notice] Your session is recorded.'
echo 'Your password expires in 3 days.' >&2
umask 077
export http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9
export LANG=tlh_KL.ISO-8859-1 LC_ALL=tlh_KL.ISO-8859-1
export PATH=/usr/bin:/bin
export TMPDIR=/var/tmp/private-$USER HOME=/var/tmp/private-$USER
mkdir -p "$HOME/gone"
cd "$HOME/gone"
rmdir "$HOME/gone"
EOF
chown "$1" "$home/.bashrc"
sed -i 's/^UMASK.*/UMASK 077/; s/^USERGROUPS_ENAB.*/USERGROUPS_ENAB no/' /etc/login.defs
grep -q pam_umask /etc/pam.d/common-session || echo 'session optional pam_umask.so' >> /etc/pam.d/common-session
# Packages come without the proxy.
echo 'Acquire::http::Proxy "DIRECT"; Acquire::https::Proxy "DIRECT";' > /etc/apt/apt.conf.d/00direct
cat > /etc/sudoers.d/hostile <<EOF
$1 ALL=(ALL:ALL) NOPASSWD: ALL
Defaults umask=0077, umask_override, lecture=always, secure_path=/usr/bin:/bin
Defaults env_keep += "http_proxy https_proxy HTTP_PROXY HTTPS_PROXY LANG LC_ALL TMPDIR"
EOF
chmod 0440 /etc/sudoers.d/hostile
