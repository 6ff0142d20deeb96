#!/bin/sh
# HAProxy as Serve starts it, but for four things. The name of the real binary is in RAG_STACK_HAPROXY.
# One that takes the place of another that died answers before it knows any application, and says 404, after which
# clients never ask again: until it knows them, this one says 503 and when to ask again.
# A request is sent on once it is here whole, or fills a buffer: only such a one can be asked of another replica when
# the first dies over it (RAY_SERVE_HAPROXY_RETRY_ON).
# Where no process takes a request, it says 503 and when to ask again; Serve has it say 500, in plain text.
# And the engine's router is asked before the engine's requests alone. Serve has it asked before every POST, since the
# engine's prefix is /: no search would be answered while there is no router. RAG_STACK_UNROUTED has the other prefixes.
asks_again='    http-request return status 503 content-type application/json hdr Retry-After 5 string '"'"'{"error":{"message":"the server is starting; try again","type":"server_error","param":null,"code":"starting"}}'"'"
nobody_takes_it='{"error":{"message":"no process takes this request now; try again","type":"server_error","param":null,"code":"unavailable"}}'
option=
for argument in "$@"; do
    if [ "$option" = "-f" ] && ! grep -q '^ *option http-buffer-request' "$argument"; then
        sed -i '/^defaults/,/^frontend/ s|^ *mode http$|&\n    option http-buffer-request|' "$argument"
    fi
    if [ "$option" = "-f" ] && ! grep -q '^ *use_backend ' "$argument"; then
        sed -i "/^backend default_backend/,\$ s|^ *http-request return status 404 .*|$asks_again|" "$argument"
    fi
    if [ "$option" = "-f" ] && grep -q '^ *errorfile 50[234] ' "$argument"; then
        answer=$(dirname "$argument")/rag_stack_503.http
        # Another start may read it now.
        printf 'HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %s\r\nRetry-After: 10\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n%s' \
            "${#nobody_takes_it}" "$nobody_takes_it" >"$answer.$$" && mv "$answer.$$" "$answer" &&
            sed -i "s|^\( *errorfile 50[234]\) .*|\1 $answer|" "$argument"
    fi
    if [ "$option" = "-f" ] && [ -n "$RAG_STACK_UNROUTED" ] && ! grep -q '^ *acl rag_stack_unrouted' "$argument"; then
        sed -i "/^ *http-request set-var(txn.ingress_request_router_app) / { s|\$| !rag_stack_unrouted|; i\\
    acl rag_stack_unrouted path_beg $RAG_STACK_UNROUTED
        }" "$argument"
    fi
    option=$argument
done
exec "$RAG_STACK_HAPROXY" "$@"
