package endpoint

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

const (
	maxConns    = 512
	lookAtFiles = 10 * time.Second
)

// serve answers on l until ctx ends, and then lets answers in progress finish.
func serve(ctx context.Context, l net.Listener, config *tls.Config, path string, bundle *published) error {
	server := &http.Server{
		Handler:           handler(path, bundle),
		TLSConfig:         config,
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // one document needs no HTTP/2
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // of whoever knocks
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		stopped <- server.Shutdown(ctx)
	}()
	if err := server.ServeTLS(netutil.LimitListener(l, maxConns), "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// handler answers GET and HEAD of one path with the bundle.
func handler(path string, bundle *published) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != path:
			http.NotFound(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		default:
			json := bundle.document.Load().json
			h := w.Header()
			h.Set("Content-Type", "application/json")
			h.Set("Content-Length", strconv.Itoa(len(json)))
			h.Set("Cache-Control", "no-cache")
			h.Set("X-Content-Type-Options", "nosniff")
			w.Write(json) // nothing of it with HEAD
		}
	})
}

// A pair is a certificate and its key in files that somebody renews.
type pair struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex // guards the fields below
	looked time.Time
	of     [2]time.Time // when the files were changed last
	loaded *tls.Certificate
}

func loadPair(cert, key string, log *slog.Logger) (*pair, error) {
	p := &pair{cert: cert, key: key, log: log}
	return p, p.load(time.Now())
}

// load reads the files if they have changed.
func (p *pair) load(now time.Time) error {
	p.looked = now
	var of [2]time.Time
	for i, file := range []string{p.cert, p.key} {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		of[i] = info.ModTime()
	}
	if p.loaded != nil && of == p.of {
		return nil
	}
	loaded, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		return err
	}
	p.loaded, p.of = &loaded, of
	return nil
}

// get returns the certificate as it is on disk. One that is half replaced, or broken, leaves
// the last one in use.
func (p *pair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.looked) >= lookAtFiles {
		if err := p.load(now); err != nil {
			p.log.Warn("the certificate on disk can't be used; serving with the last one", "err", err)
		}
	}
	return p.loaded, nil
}
