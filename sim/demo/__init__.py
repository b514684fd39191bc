"""`make demo`: the failover story on real processes and real sockets, judged by what the history says afterwards."""
