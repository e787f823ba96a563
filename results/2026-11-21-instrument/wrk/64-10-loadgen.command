target/release/loadgen run http://127.0.0.1:18080/ -c 64 -d 3s --pin off --format json -o results/2026-11-21-instrument/wrk/64-10-loadgen
# 3.352764 s of CPU time
