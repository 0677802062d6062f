//go:build clients

package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// goesItsOwnWay lists the cases of h2spec that Go's HTTP/2 server fails, and why.
var goesItsOwnWay = map[string]string{
	"http2/6.5.3: Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE":                                                                                    "a setting that is there twice ends the connection",
	"http2/8.1.2.6: Sends a HEADERS frame with the \"content-length\" header field which does not equal the DATA frame payload length":                      "the refusal does not wait for content",
	"http2/8.1.2.6: Sends a HEADERS frame with the \"content-length\" header field which does not equal the sum of the multiple DATA frames payload length": "the same",
	"http2/3.5: Sends invalid connection preface":                                                                                                           "it is taken for HTTP/1.1, and answered with 400",
	"http2/8.1.2.2: Sends a HEADERS frame that contains the connection-specific header field":                                                               "answered with 400 rather than reset",
	"http2/8.1.2.2: Sends a HEADERS frame that contains the TE header field with any value other than \"trailers\"":                                         "the same",
}

// TestProxyClientsH2spec: what RFC 9113 asks of a server. The suite answers no PING, so that
// it asks for what is refused before a challenge.
func TestProxyClientsH2spec(t *testing.T) {
	h := newCaller(t)
	h.start(nil)
	suite := h.installed(h2spec)
	failed := func(t *testing.T, report string) {
		t.Helper()
		var of struct {
			Suites []struct {
				ID    string `xml:"id,attr"`
				Cases []struct {
					Package string    `xml:"package,attr"`
					Name    string    `xml:"classname,attr"`
					Failure *struct{} `xml:"failure"`
					Error   *struct{} `xml:"error"`
				} `xml:"testcase"`
			} `xml:"testsuite"`
		}
		must(t, xml.Unmarshal([]byte(h.Read(report)), &of))
		cases := 0
		for _, s := range of.Suites {
			for _, c := range s.Cases {
				cases++
				if c.Failure != nil || c.Error != nil {
					if name := c.Package + ": " + c.Name; goesItsOwnWay[name] == "" {
						t.Errorf("it fails %q", name)
					}
				}
			}
		}
		if cases < 100 {
			t.Errorf("it tried %d cases", cases)
		}
	}
	t.Run("at the socket", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		go relay(l, h.Path("proxy.sock"))
		out, _ := h.try(suite, "--port", fmt.Sprint(l.Addr().(*net.TCPAddr).Port), "--path", "/nothing/x", "--junit-report", "socket.xml")
		failed(t, "home/socket.xml")
		t.Log(out[max(0, strings.LastIndex(out, "Failures:")):])
	})
	t.Run("at the port of vouch exec", func(t *testing.T) {
		out, _ := h.try(h.by("api", "sh", "-c", `at=${API_URL#http://127.0.0.1:}; "$0" --port "${at%%/*}" --path /nothing/x --junit-report port.xml`, suite)...)
		failed(t, "home/port.xml")
		t.Log(out[max(0, strings.LastIndex(out, "Failures:")):])
	})
}

// relay passes connections on to a Unix socket.
func relay(l net.Listener, to string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			up, err := net.Dial("unix", to)
			if err != nil {
				return
			}
			defer up.Close()
			go func() {
				io.Copy(up, c)
				up.(*net.UnixConn).CloseWrite()
			}()
			io.Copy(c, up)
		}()
	}
}

// TestProxyClientsSlowhttptest: others are served while some are as slow as they can be.
func TestProxyClientsSlowhttptest(t *testing.T) {
	h := newCaller(t)
	large := strings.Repeat("0123456789abcdef", 1<<16)
	h.Upstream.Forget()
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/large" {
			io.WriteString(w, large)
		} else {
			io.WriteString(w, "ok\n")
		}
	})
	h.start(nil)
	for name, slow := range map[string][]string{
		"headers": {"-H"}, "content": {"-B"}, "reading": {"-X", "-w", "16", "-y", "32", "-z", "8", "-n", "5"},
	} {
		t.Run("slow "+name, func(t *testing.T) {
			out := h.run(t, h.by("api", append([]string{"sh", "-c", `
slowhttptest -c 500 -r 250 -i 5 -l 60 -x 8 -u "$API_URL/large" "$@" > slow.log 2>&1 &
sleep 3
n=0
while [ $n -lt 20 ] && kill -0 $!; do n=$((n+1)); curl -fsS -m 10 "$API_URL/quick" || exit 1; done
kill $!
`, "sh"}, slow...)...)...)
			if n := strings.Count(out, "ok\n"); n != 20 {
				t.Errorf("%d calls of 20 were answered while others were slow:\n%s\n%s", n, out, h.Read("home/slow.log"))
			}
		})
	}
}
