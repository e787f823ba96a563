target/release/loadgen run http://127.0.0.1:18080/ -c 1000 -d 3s --pin off --format json -o results/2026-11-21-instrument/wrk/1000-07-loadgen
# 3.214590 s of CPU time
