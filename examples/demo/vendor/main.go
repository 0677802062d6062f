// Command vendor stands for somebody else's API in the demo, and for somebody who looks
// for its key:
//
//	vendor serve DIR          serve HTTPS on loopback, with ca.pem and address in DIR
//	vendor search KEY PID...  look for the key in the memory and environment of processes
package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	case len(os.Args) > 3 && os.Args[1] == "search":
		err = search([]byte(os.Args[2]), os.Args[3:])
	default:
		err = fmt.Errorf("usage: vendor serve DIR | search KEY PID [PID]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vendor:", err)
		os.Exit(1)
	}
}

// serve repeats, as a careless API might, the key that it was called with.
func serve(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, key.Public(), key)
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		"ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), "address": []byte(l.Addr().String()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name+".new"), text, 0o644); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := len(r.Header.Get("Authorization")) - len("Bearer ")
		fmt.Fprintf(os.Stderr, "the vendor got %s %s with a key of %d bytes\n", r.Method, r.URL.Path, n)
		fmt.Fprintf(w, "you sent %s\n", r.Header.Get("Authorization"))
	}))
}

// search looks through what can be written to of each process, and its environment.
func search(key []byte, pids []string) error {
	looked := 0
	for _, pid := range pids {
		env, err := os.ReadFile("/proc/" + pid + "/environ")
		if err != nil {
			return err
		}
		memory, err := writable(pid)
		if err != nil {
			return err
		}
		for _, b := range append(memory, env) {
			looked += len(b)
			if bytes.Contains(b, key) {
				return fmt.Errorf("process %s has the key", pid)
			}
		}
	}
	fmt.Printf("%d bytes of memory and environment of %d processes: no key\n", looked, len(pids))
	return nil
}

func writable(pid string) (regions [][]byte, err error) {
	maps, err := os.Open("/proc/" + pid + "/maps")
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	mem, err := os.Open("/proc/" + pid + "/mem")
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || mode[:2] != "rw" || to-from > 1<<30 {
			continue
		}
		b := make([]byte, to-from)
		n, _ := mem.ReadAt(b, from) // not all of it may be there
		regions = append(regions, b[:n])
	}
	return regions, nil
}
