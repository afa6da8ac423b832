#!/bin/sh
# /usr/local/bin/luminode: any verb as the service would run it, as its user, in its folder, with its configuration and
# with the secrets that root alone may read: `sudo luminode check`. Paths that you give start at /var/lib/luminode.
set -eu
user=luminode
home=/var/lib/luminode
etc=/etc/luminode
program=/opt/luminode/bin/luminode

if [ "$(id -un)" != "$user" ]; then
  [ "$(id -u)" = 0 ] || exec sudo -- "$0" "$@"
  if [ -f "$etc/environment" ]; then
    # As systemd reads an EnvironmentFile: NAME=value, perhaps in quotes; nothing in it is run.
    while IFS= read -r line || [ -n "$line" ]; do
      name=${line%%=*}
      value=${line#*=}
      case $line in *=*) ;; *) continue ;; esac
      case $name in '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac
      case $value in
        \"*\") value=${value#\"} value=${value%\"} ;;
        \'*\') value=${value#\'} value=${value%\'} ;;
      esac
      export "$name=$value"
    done <"$etc/environment"
  fi
  as="setpriv --reuid $user --regid $(id -g "$user") --init-groups --no-new-privs --"
else
  as=
fi
umask 077
cd "$home"
export HOME="$home" LUMINODE_CONFIG="$etc/config.yaml"
# shellcheck disable=SC2086
exec $as "$program" "$@"
