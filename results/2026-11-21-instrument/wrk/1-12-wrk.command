wrk -t1 -c 1 -d 3s --latency http://127.0.0.1:18080/
# 1.262666 s of CPU time
