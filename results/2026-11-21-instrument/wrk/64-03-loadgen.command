target/release/loadgen run http://127.0.0.1:18080/ -c 64 -d 3s --pin off --format json -o results/2026-11-21-instrument/wrk/64-03-loadgen
# 3.717268 s of CPU time
