# Sourced by the other scripts: sees to what building RocksDB needs, and speeds its second build up.
#
# Needed: a C++ compiler, and libclang with its builtin headers. Useful: ccache, so that RocksDB's C++ is compiled once
# and not once for each profile. What is missing is installed through the system's package manager if that may be done
# without asking for a password; otherwise the exact line to type is printed (for ccache alone: nothing is).

say() { printf '%s\n' "$*" >&2; }

# A pattern that matches nothing stays as it is, and is then no file.
any_exists() {
    for file in "$@"; do
        [ -e "$file" ] && return 0
    done
    return 1
}

# The library that bindgen loads; libclang-cpp, which often comes alone, is another one.
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for dir in /usr/lib /usr/lib64 /usr/lib/*-linux-gnu /usr/lib/llvm-*/lib /usr/lib64/llvm*/lib64 \
        /opt/homebrew/opt/llvm/lib /usr/local/opt/llvm/lib /Library/Developer/CommandLineTools/usr/lib; do
        any_exists "$dir"/libclang.so* "$dir"/libclang-[0-9]*.so* "$dir"/libclang.dylib && return 0
    done
    return 1
}

# stddef.h and its kin, which come with the compiler and not with the library.
has_clang_headers() {
    command -v clang >/dev/null 2>&1 && return 0
    any_exists /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h \
        /usr/lib64/clang/*/include/stddef.h /opt/homebrew/opt/llvm/lib/clang/*/include/stddef.h \
        /usr/local/opt/llvm/lib/clang/*/include/stddef.h
}

has_all_that_is_needed() {
    { command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1; } && has_libclang && has_clang_headers
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

# Installs the packages, given under their names for apt, dnf, pacman and brew. On failure `line` is what to type.
install_packages() {
    line=
    sudo="sudo "
    [ "$(id -u)" = 0 ] && sudo=
    if command -v apt-get >/dev/null 2>&1; then
        line="${sudo}apt-get update && ${sudo}apt-get install -y --no-install-recommends $1"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2 || true
        # shellcheck disable=SC2086
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $1 >&2 && return 0
    elif command -v dnf >/dev/null 2>&1; then
        line="${sudo}dnf install -y $2"
        # shellcheck disable=SC2086
        as_root dnf install -y $2 >&2 && return 0
    elif command -v pacman >/dev/null 2>&1; then
        line="${sudo}pacman -S --needed --noconfirm $3"
        # shellcheck disable=SC2086
        as_root pacman -S --needed --noconfirm $3 >&2 && return 0
    elif command -v brew >/dev/null 2>&1; then
        # shellcheck disable=SC2086
        brew install $4 >&2 && return 0
        line="brew install $4"
    fi
    return 1
}

# What the tests of real processes make faults with. Without it they say which of them were not run.
offer_fault_tools() {
    case $(uname) in Linux) ;; *) return 0 ;; esac
    for tool in strace mkfs.ext4 fsfreeze perl; do
        command -v "$tool" >/dev/null 2>&1 || {
            install_packages "strace e2fsprogs util-linux perl-base" "strace e2fsprogs util-linux perl-interpreter" \
                "strace e2fsprogs util-linux perl" "" >/dev/null 2>&1 || true
            return 0
        }
    done
}

# Where the package of ccache keeps links that are named like compilers.
ccache_links() {
    for dir in /usr/lib/ccache/bin /usr/lib/ccache /usr/lib64/ccache /opt/homebrew/opt/ccache/libexec \
        /usr/local/opt/ccache/libexec; do
        [ -e "$dir/c++" ] && printf '%s\n' "$dir" && return 0
    done
    return 1
}

if ! command -v cargo >/dev/null 2>&1 && [ -f "${HOME:-}/.cargo/env" ]; then
    # A shell that was open when Rust was installed, or one that reads no profile.
    . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null 2>&1; then
    say "cargo is not here. Install Rust first, see https://rustup.rs, then run this again."
    exit 1
fi
if ! has_all_that_is_needed; then
    say "Installing what RocksDB is built with: a C++ compiler, libclang, ccache."
    if ! install_packages "g++ libclang-dev clang ccache" "gcc-c++ clang-devel clang ccache" "gcc clang ccache" \
        "llvm ccache"; then
        say "RocksDB needs a C++ compiler and libclang with its headers, and they could not be installed."
        if [ -n "$line" ]; then say "Type:  $line"; else say "Install them, then run this again."; fi
        exit 1
    fi
elif ! command -v ccache >/dev/null 2>&1; then
    # Without it all works, only slower.
    install_packages ccache ccache ccache ccache >/dev/null 2>&1 || true
fi
# In front of the path and not in CC and CXX: if those change, and a plain `cargo test` does not have them, RocksDB's
# build starts from nothing.
if [ -z "${CC:-}${CXX:-}" ] && links=$(ccache_links); then
    PATH="$links:$PATH"
    export PATH
fi
