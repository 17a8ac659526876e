// The Go peer of bench/load/peers.py: net/http/httputil.ReverseProxy as a Go program would use it.
// Usage: goproxy LISTEN UPSTREAM
package main

import (
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
)

func main() {
	runtime.GOMAXPROCS(1)
	upstream, err := url.Parse("http://" + os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(upstream)
	proxy.Transport = &http.Transport{MaxIdleConns: 4096, MaxIdleConnsPerHost: 4096}
	http.HandleFunc("/proxy", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Gateway", "go")
		w.Write([]byte("OK"))
	})
	http.Handle("/", proxy)
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
