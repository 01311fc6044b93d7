#!/usr/bin/env bash
# Fetches a software Vulkan driver (Mesa's lavapipe) with its loader from Debian into target/vulkan/, without installing
# anything, and prints the environment that makes programs use it:
#
#   eval "$(tests/vulkan.sh)"
#
# Fails with a reason on standard error where that cannot be done: another system than Debian, no network, no `dpkg`.
set -eu -o pipefail
cd "$(dirname "$0")/.."
root=${CARGO_TARGET_DIR:-$PWD/target}/vulkan

refuse() { # WHY
    echo "$1" >&2
    exit 1
}

# Packages that this system lacks for the driver, one a line.
missing() {
    apt-get install --simulate --no-install-recommends mesa-vulkan-drivers libvulkan1 2>/dev/null |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p'
}

fetch() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || refuse "there is no apt-get or no dpkg-deb here"
    local new=$root.new names
    rm -rf "$new" && mkdir -p "$new/deb" "$new/root"
    # Names of packages that are already here come too: their files may be absent from the path that programs search.
    names=$(missing || true)
    if [ -z "$names" ] && [ "$(id -u)" = 0 ]; then
        apt-get update >/dev/null 2>&1 || true
        names=$(missing || true)
    fi
    names=$(printf '%s\n' $names mesa-vulkan-drivers libvulkan1 | sort -u)
    if ! (cd "$new/deb" && apt-get download $names >apt.log 2>&1); then
        [ "$(id -u)" = 0 ] && apt-get update >/dev/null 2>&1
        (cd "$new/deb" && apt-get download $names >apt.log 2>&1) || {
            tail -n 3 "$new/deb/apt.log" >&2
            refuse "apt-get could not download mesa-vulkan-drivers"
        }
    fi
    for deb in "$new"/deb/*.deb; do dpkg-deb --extract "$deb" "$new/root"; done
    rm -rf "$new/deb" "$root"
    mv "$new" "$root"
}

icd() { find "$root/root/usr/share/vulkan/icd.d" -name 'lvp_icd*.json' 2>/dev/null | head -n 1; }

[ -n "$(icd)" ] || fetch
[ -n "$(icd)" ] || refuse "the packages hold no lavapipe driver"
library=$(find "$root/root/usr/lib" -name 'libvulkan_lvp.so' | head -n 1)
[ -n "$library" ] || refuse "the packages hold no lavapipe library"
# The packaged manifest names the library by its installed path.
sed "s#\"library_path\": *\"[^\"]*\"#\"library_path\": \"$library\"#" "$(icd)" >"$root/lvp.json"
echo "export VK_DRIVER_FILES='$root/lvp.json' VK_ICD_FILENAMES='$root/lvp.json'"
echo "export LD_LIBRARY_PATH='$(dirname "$library")'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
