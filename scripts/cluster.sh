#!/bin/sh
# Three nodes on loopback that form a cluster, with the flags that docker-compose.yml gives
# them. Ctrl-C stops them; their data stays in ./holdfast-cluster, and the next start goes on.
set -eu
cd "$(dirname "$0")/.."
dir=${1:-holdfast-cluster}
mkdir -p "$dir"
CGO_ENABLED=0 go build -trimpath -o "$dir/node" ./cmd/node
[ -s "$dir/secret" ] || "$dir/node" secret --file "$dir/secret"

pids=
stop() {
	trap - INT TERM
	kill $pids 2>/dev/null || true
	wait
}
trap 'stop; exit 0' INT TERM

for port in 8787 8797 8807; do
	"$dir/node" --listen "127.0.0.1:$port" --cluster-listen "127.0.0.1:$((port + 1))" --data "$dir/$port" \
		--cluster-secret-file "$dir/secret" --bootstrap-expect 3 \
		--join 127.0.0.1:8788,127.0.0.1:8798,127.0.0.1:8808 >"$dir/$port.log" 2>&1 &
	pids="$pids $!"
	echo "http://127.0.0.1:$port  is process $!, and logs to $dir/$port.log"
done
cat <<END

Watch it:  $dir/node members --cluster-secret-file $dir/secret
           $dir/node where chatroom lobby --cluster-secret-file $dir/secret
Break it:  kill -9 any of the processes; the others go on. Ctrl-C stops all.
END
wait
