wrk -t1 -c 64 -d 3s --latency http://127.0.0.1:18080/
# 3.072770 s of CPU time
