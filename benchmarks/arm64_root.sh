#!/usr/bin/env bash
# An ARM64 Python with onnxruntime in a folder, run by qemu-user: the same numbers as on a phone or a Raspberry Pi, at a
# hundredth of the speed. For equality, never for time.
#
#   benchmarks/arm64_root.sh DIR [VERSION of onnxruntime]
#   trp-onnx bench MODEL --rounds 2 --runtime python:DIR/python
#
# Needs Debian 12 (or a relative), root for apt, and its package qemu-user. Nothing is installed outside DIR but that.
set -euo pipefail
root=$(mkdir -p "$1" && cd "$1" && pwd)
version=${2:-1.32.0}
command -v qemu-aarch64 > /dev/null || apt-get install -qq -y --no-install-recommends qemu-user > /dev/null

# A package list of its own: the machine's stays as it is.
lists=$root/.apt
mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial" "$lists/state"
touch "$lists/status"
apt=(apt-get -qq -o "Dir::State=$lists/state" -o "Dir::State::lists=$lists/lists" -o "Dir::State::status=$lists/status"
     -o "Dir::Cache=$lists/cache" -o APT::Architecture=arm64 -o APT::Architectures::=arm64
     -o "APT::Sandbox::User=root")
"${apt[@]}" update
(cd "$lists" && "${apt[@]}" download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3.11 libc6 \
    libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libcrypt1 libuuid1)
for package in "$lists"/*.deb; do dpkg -x "$package" "$root"; done
rm -rf "$lists"

python3 -m pip install --quiet --disable-pip-version-check --target "$root/site" --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    --python-version 3.11 --implementation cp "onnxruntime==$version" numpy
mkdir -p "$root/proc"  # onnxruntime reads which instructions there are
printf 'processor\t: 0\nFeatures\t: fp asimd atomics fphp asimdhp asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n' \
    > "$root/proc/cpuinfo"
cat > "$root/python" << END
#!/bin/sh
PYTHONPATH="$root/site" exec qemu-aarch64 -L "$root" "$root/usr/bin/python3.11" "\$@"
END
chmod +x "$root/python"
"$root/python" -c 'import onnxruntime, platform; print(platform.machine(), "onnxruntime", onnxruntime.__version__)'
