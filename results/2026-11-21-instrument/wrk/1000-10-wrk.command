wrk -t1 -c 1000 -d 3s --latency http://127.0.0.1:18080/
# 3.073647 s of CPU time
