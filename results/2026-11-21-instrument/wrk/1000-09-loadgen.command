target/release/loadgen run http://127.0.0.1:18080/ -c 1000 -d 3s --pin off --format json -o results/2026-11-21-instrument/wrk/1000-09-loadgen
# 3.211161 s of CPU time
