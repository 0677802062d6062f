// Command agent is a sample agent. It knows nothing of vouchd: it uses the
// stock SPIFFE library, which finds the socket by SPIFFE_ENDPOINT_SOCKET.
//
//	agent identity AUDIENCE    fetch an X509-SVID and a JWT-SVID and say so
//	agent serve PEER           answer one mTLS call from the agent PEER; prints the address
//	agent call ADDRESS PEER    call the agent PEER over mTLS
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("agent: ")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "identity":
		return identity(ctx, args[1])
	case len(args) == 2 && args[0] == "serve":
		return serve(ctx, args[1])
	case len(args) == 3 && args[0] == "call":
		return call(ctx, args[1], args[2])
	}
	return errors.New("usage: agent identity AUDIENCE | serve PEER | call ADDRESS PEER")
}

func identity(ctx context.Context, audience string) error {
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	x509, err := client.FetchX509SVID(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("I am %s by X509-SVID, until %s\n", x509.ID, x509.Certificates[0].NotAfter.Format(time.TimeOnly))
	jwt, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return err
	}
	checked, err := client.ValidateJWTSVID(ctx, jwt.Marshal(), audience)
	if err != nil {
		return err
	}
	fmt.Printf("I am %s by JWT-SVID for %s, until %s\n", checked.ID, audience, jwt.Expiry.Format(time.TimeOnly))
	return nil
}

func serve(ctx context.Context, peer string) error {
	only, err := spiffeid.FromString(peer)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(only))
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	fmt.Println(l.Addr())
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, "you said %q, and I know you as %s\n", line[:len(line)-1], peer)
	return err
}

func call(ctx context.Context, address, peer string) error {
	only, err := spiffeid.FromString(peer)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(only))
	conn, err := (&tls.Dialer{NetDialer: new(net.Dialer), Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintln(conn, "hello")
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	fmt.Printf("%s answered: %s", peer, answer)
	return nil
}
