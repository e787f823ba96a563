target/release/loadgen run http://127.0.0.1:18080/ -c 1 -d 3s --pin off --format json -o results/2026-11-21-instrument/wrk/1-11-loadgen
# 1.633370 s of CPU time
