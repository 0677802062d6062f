//go:build spiresuite

package spire_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vouchd/vouchd/credential/postgres/pgtest"
	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
)

func spireBin(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("SPIRE_BIN")
	if bin == "" {
		t.Fatal("SPIRE_BIN names no directory with spire-server and spire-agent; run make test-spire SPIRE_BIN=DIR")
	}
	return bin
}

func TestRealServerHoldsToTheSuite(t *testing.T) {
	t.Parallel()
	suite(t, real{spiretest.StartReal(t, spireBin(t), "", time.Minute)})
}

// newSwitch passes connections on to the first of some addresses that answers, as a name with
// two addresses does.
func newSwitch(t testing.TB, to ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for _, address := range to {
					up, err := net.Dial("tcp", address)
					if err != nil {
						continue
					}
					var both sync.WaitGroup
					both.Go(func() { io.Copy(up, c); up.(*net.TCPConn).CloseWrite() })
					both.Go(func() { io.Copy(c, up); c.(*net.TCPConn).CloseWrite() })
					both.Wait()
					up.Close()
					return
				}
			}()
		}
	}()
	return l.Addr().String()
}

func TestOneOfTwoRealServersOnPostgreSQLMayDie(t *testing.T) {
	t.Parallel()
	pg, err := pgtest.Start()
	must(t, err)
	t.Cleanup(pg.Stop)
	database := fmt.Sprintf("database_type = \"postgres\"\nconnection_string = %q",
		fmt.Sprintf("host=%s port=%d user=postgres password=%s dbname=postgres sslmode=disable", pg.SocketDir, pg.Port, pg.Password))
	one := spiretest.StartReal(t, spireBin(t), database, time.Hour)
	two := one.Second(database)
	one.Add(entryFor("/first", "unix:uid:0"))
	h := newHostOf(t, real{one})
	address := newSwitch(t, one.Address, two.Address)
	h.change = func(o *spire.Options) { o.Server = address }
	h.start()
	before := h.served("/first")
	one.Stop()
	two.Add(entryFor("/second", "unix:uid:0"))
	svid := h.served("/second")
	if svid.IssuerID == before.IssuerID {
		t.Errorf("both are of authority %s", svid.IssuerID)
	}
	if again := h.served("/first"); again.Serial != before.Serial {
		t.Errorf("what the first server signed is served no more")
	}
	eventually(t, "it is online", func() bool { return h.State().Online })
	one.Start()
	two.Stop()
	one.Add(entryFor("/third", "unix:uid:0"))
	h.served("/third")
}

func BenchmarkRealFleet(b *testing.B) {
	r := spiretest.StartReal(b, spireBin(b), "", time.Hour)
	fleet(b, real{r}, r.CPU)
}
