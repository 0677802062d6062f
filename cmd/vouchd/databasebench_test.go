package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/databasetest"
)

// BenchmarkDatabase is what vouchd adds to a database's answers: the same statements to the
// same server over TLS, sent there directly, by way of a program that only copies bytes, and
// by way of vouchd, where they are judged and where not. Connecting is in none of it, and
// measured by itself.
func BenchmarkDatabase(b *testing.B) {
	h := databasetest.New(b)
	h.StartProcess()
	h.Ready("tides")
	h.Write("credentials.d/judged.yaml", h.Definition("judged", "10m", "statements: [SELECT]"))
	h.Write("entries.d/b.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/judged\", selectors: [\"unix:uid:%d\"], credentials: [judged]}\n", os.Getuid()))
	h.Ready("judged")
	login := "user=vouchd password=the-daemons-own dbname=postgres "
	ways := []struct{ name, connect string }{
		{"direct", login + fmt.Sprintf("host=localhost port=%d sslmode=verify-full sslrootcert=%s", h.Server.Port, h.Server.CAFile)},
		{"copied", login + "sslmode=disable host=" + copier(b, h)},
		{"vouchd", "sslmode=disable host=" + h.Socket("tides")},
		{"judged", "sslmode=disable host=" + h.Socket("judged")},
	}
	connect := func(b *testing.B, to string) *pgx.Conn {
		c, err := pgx.Connect(context.Background(), to)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	for _, way := range ways {
		b.Run("connect/"+way.name, func(b *testing.B) {
			for b.Loop() {
				connect(b, way.connect).Close(context.Background())
			}
		})
	}
	for _, way := range ways {
		for _, many := range []int{1, 16} {
			b.Run(fmt.Sprintf("query/%d/%s", many, way.name), func(b *testing.B) {
				conns := make(chan *pgx.Conn, many)
				for range many {
					conns <- connect(b, way.connect)
				}
				b.ResetTimer()
				began := time.Now()
				var work sync.WaitGroup
				for i := range many {
					n := b.N / many
					if i < b.N%many {
						n++
					}
					work.Go(func() {
						c := <-conns
						defer c.Close(context.Background())
						for range n {
							var height int
							if err := c.QueryRow(context.Background(), "SELECT height FROM tides").Scan(&height); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				work.Wait()
				b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "queries/s")
			})
		}
		if way.name == "judged" {
			continue // it may not copy, and what comes is not judged
		}
		b.Run("rows/"+way.name, func(b *testing.B) {
			c := connect(b, way.connect)
			defer c.Close(context.Background())
			b.SetBytes(100_000 * 100)
			for b.Loop() {
				if _, err := c.PgConn().CopyTo(context.Background(), io.Discard, "COPY (SELECT repeat('x', 99) FROM generate_series(1, 100000)) TO STDOUT"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// copierSocket makes a process of the test program one that copies bytes between a socket
// and the server, as little as a relay can do: after the agent's startup, over TLS.
const (
	copierSocket = "TEST_COPIER_SOCKET"
	copierServer = "TEST_COPIER_SERVER"
	copierCA     = "TEST_COPIER_CA"
)

func copier(b *testing.B, h *databasetest.Host) (dir string) {
	dir = b.TempDir()
	socket := filepath.Join(dir, ".s.PGSQL.5432")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), copierSocket+"="+socket, copierServer+"="+fmt.Sprintf("localhost:%d", h.Server.Port), copierCA+"="+h.Server.CAFile)
	cmd.Stderr = b.Output()
	must(b, cmd.Start())
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	daemontest.Eventually(b, "the copier serves", func() bool { _, err := os.Stat(socket); return err == nil })
	return dir
}

func serveCopier(socket string) error {
	pem, err := os.ReadFile(os.Getenv(copierCA))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			up, err := net.Dial("tcp", os.Getenv(copierServer))
			if err != nil {
				return
			}
			defer up.Close()
			up.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}) // SSLRequest
			if _, err := io.ReadFull(up, make([]byte, 1)); err != nil {
				return
			}
			secure := tls.Client(up, &tls.Config{ServerName: "localhost", RootCAs: roots})
			go func() { io.Copy(secure, c); up.Close() }()
			io.Copy(c, secure)
		}()
	}
}
