wrk -t1 -c 64 -d 3s --latency http://127.0.0.1:18080/
# 2.853054 s of CPU time
