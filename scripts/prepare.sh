# Sourced by the other scripts: sees to what building RocksDB needs, and speeds its second build up.
#
# Needed: a C++ compiler and libclang. Useful: ccache, so that RocksDB's C++ is compiled once and not once for each
# profile. What is missing is installed through the system's package manager if that may be done without asking for a
# password; otherwise the exact line to type is printed.

say() { printf '%s\n' "$*" >&2; }

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for dir in /usr/lib /usr/lib64 /usr/lib/*-linux-gnu /usr/lib/llvm-*/lib /usr/lib64/llvm*/lib64 \
        /opt/homebrew/opt/llvm/lib /usr/local/opt/llvm/lib /Library/Developer/CommandLineTools/usr/lib; do
        for file in "$dir"/libclang.so "$dir"/libclang.so.* "$dir"/libclang-*.so* "$dir"/libclang.dylib; do
            [ -e "$file" ] && return 0
        done
    done
    return 1
}

# Runs a command as root, if that needs no password.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

install_packages() {
    if command -v apt-get >/dev/null 2>&1; then
        line="apt-get install -y --no-install-recommends g++ libclang-dev clang ccache"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2 || true
        # shellcheck disable=SC2086
        as_root env DEBIAN_FRONTEND=noninteractive $line -qq >&2 && return 0
    elif command -v dnf >/dev/null 2>&1; then
        line="dnf install -y gcc-c++ clang-devel ccache"
        # shellcheck disable=SC2086
        as_root $line >&2 && return 0
    elif command -v pacman >/dev/null 2>&1; then
        line="pacman -S --needed --noconfirm gcc clang ccache"
        # shellcheck disable=SC2086
        as_root $line >&2 && return 0
    elif command -v brew >/dev/null 2>&1; then
        line="brew install llvm ccache"
        # shellcheck disable=SC2086
        $line >&2 && return 0
        say "Could not install what RocksDB needs. Type:  $line"
        return 1
    else
        say "RocksDB needs a C++ compiler (g++ or clang++) and libclang: install them, then run this again."
        return 1
    fi
    say "RocksDB needs a C++ compiler and libclang, and they could not be installed. Type:  sudo $line"
    return 1
}

if ! command -v cargo >/dev/null 2>&1; then
    say "cargo is not here. Install Rust first, see https://rustup.rs, then run this again."
    exit 1
fi
if { ! command -v c++ >/dev/null 2>&1 && ! command -v g++ >/dev/null 2>&1; } || ! has_libclang; then
    say "Installing what RocksDB is built with: a C++ compiler, libclang, ccache."
    install_packages || exit 1
fi
if command -v ccache >/dev/null 2>&1; then
    export CC="${CC:-ccache cc}" CXX="${CXX:-ccache c++}"
fi
