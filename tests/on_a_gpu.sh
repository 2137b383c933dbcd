#!/bin/sh
# What needs a GPU, on a machine lent for minutes, from a copy of this repository: nothing is installed, and
# no network is used. It takes python3 with torch, numpy, einops, scipy, filelock and tqdm; pytest for part a.
#
#     tests/on_a_gpu.sh                   # all four parts, 13 minutes at most
#     tests/on_a_gpu.sh a b d=1           # some, in this order, a minute at most for the last
#     tests/on_a_gpu.sh b c=7.5           # another time, with CIFAR-10 in the folder $MRLA_DATA
#     tests/on_a_gpu.sh --device cpu --suite smoke a=1 b=1 c=1 d=1        # a rehearsal
#     tests/on_a_gpu.sh --commit          # what to set MRLA_COMMIT to where the copy will have no .git
#
#     part  minutes  what
#     a     1.5      tests/test_cuda.py
#     b     2        times a training step of each variant of the suite: processes side by side, launch by
#                    launch or each step one CUDA graph; and several graphs in one process, a stream each
#     d     1.5      plain ResNet-20, images/s and the seconds of 200 epochs; ResNet-50 with MRLA in half
#                    precision, time and peak memory against the naive forms, as in mrla bench attention
#     c     7.5      runs the suite by time, the way that the table in tests/tools/gpu_ways.py picks of b's
#                    times (of those in $OUT, where b ran before)
#
# The minutes can be set by $MRLA_GPU_MINUTES too ("a=1 b=2"), the device by $MRLA_TEST_DEVICE. A part that
# fails, or is out of time, is told by the exit status, and the others run. All is written to $OUT (or --out,
# else runs/on_a_gpu) as it comes, and survives a kill at any moment: on_a_gpu.jsonl, each line with the
# device's name, torch's version and the commit; log.txt; the suite's records, SUITE.jsonl, a line a run.
here=$(cd "$(dirname "$0")/.." && pwd) || exit 1
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" MRLA_OFFLINE=1 PYTHONUNBUFFERED=1 \
    exec "${PYTHON:-python3}" "$here/tests/tools/on_a_gpu.py" "$@"
