#!/bin/sh
# HAProxy as Serve starts it, but for one answer. One that takes the place of another that died answers before it knows
# any application, and says 404, after which clients never ask again. Until it knows them, this one says 503 and when
# to ask again. The name of the real binary is in RAG_STACK_HAPROXY.
asks_again='    http-request return status 503 content-type application/json hdr Retry-After 1 string '"'"'{"error":{"message":"the server is starting; try again","type":"server_error","param":null,"code":"starting"}}'"'"
option=
for argument in "$@"; do
    if [ "$option" = "-f" ] && ! grep -q '^ *use_backend ' "$argument"; then
        sed -i "/^backend default_backend/,\$ s|^ *http-request return status 404 .*|$asks_again|" "$argument"
    fi
    option=$argument
done
exec "$RAG_STACK_HAPROXY" "$@"
