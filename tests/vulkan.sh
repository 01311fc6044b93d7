#!/usr/bin/env bash
# Fetches software Vulkan drivers from Debian into target/vulkan/, without installing anything, and prints the environment
# that makes programs use them:
#
#   eval "$(tests/vulkan.sh)"                  Mesa's lavapipe of this release, with the loader
#   eval "$(tests/vulkan.sh swiftshader)"      SwiftShader, as Chromium ships it, with lavapipe's loader
#   eval "$(tests/vulkan.sh matrices)"         a newer lavapipe, which has cooperative matrices, with the C library that it
#                                              needs; cargo then runs test programs under that one
#
# Fails with a reason on standard error where that cannot be done: another system than Debian, no network, no `dpkg-deb`.
set -eu -o pipefail
cd "$(dirname "$0")/.."
root=${CARGO_TARGET_DIR:-$PWD/target}/vulkan
case $root in /*) ;; *) root=$PWD/$root ;; esac

refuse() { # WHY
    echo "$1" >&2
    exit 1
}

# Downloads packages, each with a part of its files, to a folder that appears when it is complete.
fetch() { # FOLDER FILES PACKAGE...
    local folder=$root/$1 files=$2 new=$root/$1.new
    shift 2
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || refuse "there is no apt-get or no dpkg-deb here"
    rm -rf "$new" && mkdir -p "$new/deb"
    download() { (cd "$new/deb" && apt-get download "$@" >apt.log 2>&1); }
    if ! download "$@"; then
        [ "$(id -u)" = 0 ] && apt-get update >/dev/null 2>&1
        download "$@" || {
            tail -n 3 "$new/deb/apt.log" >&2
            refuse "apt-get could not download $*"
        }
    fi
    for deb in "$new"/deb/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar --extract --directory "$new" --wildcards "$files" 2>/dev/null || true
    done
    rm -rf "$new/deb" "$folder"
    mv "$new" "$folder"
}

# A newer lavapipe with all that it depends on, from the suites after this release, by an apt of its own.
fetch_newer() {
    local apt=$root/apt archive names
    command -v apt-get >/dev/null || refuse "there is no apt-get here"
    archive=$(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u | head -n 1)
    [ -n "$archive" ] || refuse "apt knows no Debian archive"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    : >"$apt/status"
    printf "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive %s main\n" trixie trixie-backports \
        >"$apt/sources.list"
    APT_CONFIG=$apt/apt.conf
    export APT_CONFIG
    cat >"$APT_CONFIG" <<END
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
APT::Install-Recommends "false";
END
    apt-get update >"$apt/update.log" 2>&1 || refuse "apt-get update of the newer suites failed, see $apt/update.log"
    names=$(apt-get install --simulate -t trixie-backports mesa-vulkan-drivers libvulkan1 2>/dev/null |
        sed -n 's/^Inst \([^ ]*\) (\([^ ]*\).*/\1=\2/p')
    [ -n "$names" ] || refuse "the newer suites have no lavapipe"
    # shellcheck disable=SC2086 # one word a package
    fetch matrices './usr/lib/*' $names
    unset APT_CONFIG
    rm -rf "$apt"
}

# lavapipe's package and what this system lacks for it.
packages() {
    apt-get install --simulate --no-install-recommends mesa-vulkan-drivers libvulkan1 2>/dev/null |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p' || true
    printf '%s\n' mesa-vulkan-drivers libvulkan1
}

library() { find "$root/$1" -name "$2" 2>/dev/null | head -n 1; }

manifest() { # NAME LIBRARY
    mkdir -p "$root"
    printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "%s", "api_version": "1.3.0"}}\n' "$2" >"$root/$1.json"
    echo "export VK_DRIVER_FILES='$root/$1.json' VK_ICD_FILENAMES='$root/$1.json'"
}

if [ "${1:-lavapipe}" = matrices ]; then
    [ "$(uname -m)" = x86_64 ] || refuse "this is written for x86-64"
    [ -n "$(library matrices libvulkan_lvp.so)" ] || fetch_newer
    driver=$(library matrices libvulkan_lvp.so)
    loader=$(library matrices ld-linux-x86-64.so.2)
    [ -n "$driver" ] && [ -n "$loader" ] || refuse "the packages hold no lavapipe driver or no C library"
    manifest matrices "$driver"
    echo "export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='$loader --library-path $(dirname "$driver")'"
    exit 0
fi
if [ -z "$(library lavapipe libvulkan_lvp.so)" ]; then
    if [ "$(id -u)" = 0 ] && [ -z "$(apt-cache policy mesa-vulkan-drivers 2>/dev/null)" ]; then
        apt-get update >/dev/null 2>&1 || true
    fi
    # shellcheck disable=SC2046 # one word a package
    fetch lavapipe './usr/lib/*' $(packages | sort -u)
fi
driver=$(library lavapipe libvulkan_lvp.so)
loader=$(library lavapipe 'libvulkan.so.1')
[ -n "$driver" ] && [ -n "$loader" ] || refuse "the packages hold no lavapipe driver or no Vulkan loader"
if [ "${1:-lavapipe}" = swiftshader ]; then
    [ -n "$(library swiftshader libvk_swiftshader.so)" ] ||
        fetch swiftshader './usr/lib/chromium/libvk_swiftshader.so' chromium-common
    driver=$(library swiftshader libvk_swiftshader.so)
    [ -n "$driver" ] || refuse "the package holds no SwiftShader driver"
fi
manifest "${1:-lavapipe}" "$driver"
echo "export LD_LIBRARY_PATH='$(dirname "$loader")'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
