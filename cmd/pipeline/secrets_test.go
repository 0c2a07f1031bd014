package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	crypt "github.com/tidemark-sync/tidemark/adapters/age"
	"github.com/tidemark-sync/tidemark/adapters/s3"
	"github.com/tidemark-sync/tidemark/integration/servers"
)

// What nobody may ever see. The names end up in failures, the values nowhere.
var canaries = map[string]string{
	"the S3 secret key":       "cAnArY-s3-secret-key-Zq81",
	"the S3 session token":    "cAnArY-s3-session-token-Zq82",
	"the passphrase":          "cAnArY passphrase Zq83",
	"the bearer token":        "cAnArY-bearer-token-Zq84",
	"the collector's token":   "cAnArY-collector-token-Zq85",
	"a secret put anywhere":   "cAnArY-misplaced-Zq86",
	"the private key":         "cAnArYprivatekeyZq87",
	"the proxy's password":    "cAnArY-proxy-password-Zq88",
	"the S3 server's own key": "test-secret-key", // of integration/servers
}

// What only the databases may hold, the letters in them and what is asked for them, and
// snapshots that are encrypted.
var rowCanaries = map[string]string{
	"a row's text":   "cAnArY row text Zq91",
	"a row's BLOB":   "cAnArY row blob Zq92",
	"a row's number": "918273645546372819",
}

// run is a command of this test, with everything that it may see.
type run struct {
	args []string
	env  []string
	want string // what its output has to say: the failure that is meant is the one that is tried
	fine bool   // it fails but for this
}

type secrets struct {
	t    *testing.T
	dir  string
	env  []string
	mu   sync.Mutex
	seen map[string][]byte // everything that came out, by where
}

func (s *secrets) keep(where string, what []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[where] = append(s.seen[where], what...)
}

func (s *secrets) run(name string, r run) string {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "pipeline", r.args...)
	cmd.Dir = s.dir
	cmd.Env = append(append(cmd.Environ(), s.env...), r.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if (err != nil) != (r.want != "" && !r.fine) || ctx.Err() != nil || !strings.Contains(out.String(), r.want) {
		s.t.Errorf("%s: %v, and it has to say %q\n%s", name, err, r.want, out.String())
	}
	s.keep(name, out.Bytes())
	return out.String()
}

func (s *secrets) write(name, text string) string {
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *secrets) sql(name string, statements ...string) {
	db, err := openTest(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	for _, q := range statements {
		if _, err := db.ExecContext(s.t.Context(), q); err != nil {
			s.t.Fatal(err)
		}
	}
}

// database makes an attached database with the canaries of rows.
func (s *secrets) database(name string) string {
	s.sql(name, `CREATE TABLE diary (id INTEGER PRIMARY KEY, text TEXT, body BLOB, n INTEGER)`,
		`INSERT INTO diary (text, body, n) VALUES ('`+rowCanaries["a row's text"]+`', CAST('`+rowCanaries["a row's BLOB"]+`' AS BLOB), `+rowCanaries["a row's number"]+`)`)
	s.run("attach "+name, run{args: []string{"attach", "--db", name}})
	return name
}

// collected plays a collector.
func (s *secrets) collected() string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var in collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &in)
		}
		if err != nil {
			s.t.Error(err)
		}
		s.keep("spans", body)
	}))
	s.t.Cleanup(server.Close)
	return server.URL
}

// quotingS3 is an S3, or something on the way to one, that repeats what it was asked.
func (s *secrets) quotingS3(code int, form string) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(code)
		quoted := fmt.Sprintf("%s %s %v", r.Method, r.URL, r.Header)
		fmt.Fprintf(w, form, strings.NewReplacer("<", "&lt;", ">", "&gt;", "&", "&amp;").Replace(quoted))
	}))
	s.t.Cleanup(server.Close)
	return "s3://bucket/alice?region=us-east-1&endpoint=" + server.URL
}

// quotingFirestore has nothing, and answers a commit (or everything, with all) with a
// text that repeats it and the credentials that came with it.
func (s *secrets) quotingFirestore(code codes.Code, all bool) []string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		var in emptypb.Empty // keeps the whole request as unknown fields
		if err := stream.RecvMsg(&in); err != nil {
			return err
		}
		request := in.ProtoReflect().GetUnknown()
		head, _ := metadata.FromIncomingContext(stream.Context())
		method, _ := grpc.MethodFromServerStream(stream)
		switch {
		case all:
		case strings.HasSuffix(method, "/RunQuery"):
			return stream.SendMsg(&pb.RunQueryResponse{ReadTime: timestamppb.Now()})
		case strings.HasSuffix(method, "/BatchGetDocuments"):
			var get pb.BatchGetDocumentsRequest
			if err := proto.Unmarshal(request, &get); err != nil {
				return err
			}
			for _, name := range get.GetDocuments() {
				if err := stream.SendMsg(&pb.BatchGetDocumentsResponse{ReadTime: timestamppb.Now(), Result: &pb.BatchGetDocumentsResponse_Missing{Missing: name}}); err != nil {
					return err
				}
			}
			return nil
		}
		quoted := strings.ToValidUTF8(string(request), "?")
		var commit pb.CommitRequest
		if proto.Unmarshal(request, &commit) == nil && len(commit.GetWrites()) > 1 {
			quoted = commit.GetWrites()[1].String() // the row: numbers as text
		}
		return status.Errorf(code, "%s of %v with authorization: Bearer %s: %s", method, head, canaries["the bearer token"], quoted)
	}))
	go func() { _ = server.Serve(l) }()
	s.t.Cleanup(server.Stop)
	return []string{"FIRESTORE_EMULATOR_HOST=" + l.Addr().String()}
}

// Credentials and keys are in nothing that comes out of a run, and rows only where rows
// belong: with everything in order, and in every failure that can be provoked.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	emulator, bucket := servers.Firestore(t), servers.S3(t)
	s := &secrets{t: t, dir: t.TempDir(), seen: map[string][]byte{}}
	file, _, err := crypt.Generate()
	if err != nil {
		t.Fatal(err)
	}
	key := s.write("key.txt", file)
	other, _, err := crypt.Generate()
	if err != nil {
		t.Fatal(err)
	}
	otherKey := s.write("other.txt", other)
	hunted := maps.Clone(canaries)
	for name, text := range map[string]string{"the identity": file, "the other identity": other} {
		_, id, _ := strings.Cut(text, "AGE-SECRET-KEY-")
		hunted[name] = strings.TrimSpace(id)
	}
	remote := "firestore://" + servers.Project(t) + "/users/alice"
	store := fmt.Sprintf("s3://%s/alice?region=%s&endpoint=%s", bucket.Bucket, bucket.Region, bucket.Endpoint)
	s.env = []string{
		"TERM=dumb", "GORACE=atexit_sleep_ms=0", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=" + filepath.Join(s.dir, "none"), "AWS_SHARED_CREDENTIALS_FILE=" + filepath.Join(s.dir, "none"), "GOOGLE_APPLICATION_CREDENTIALS=" + filepath.Join(s.dir, "none"),
		"FIRESTORE_EMULATOR_HOST=" + emulator, "AWS_ACCESS_KEY_ID=" + bucket.AccessKey, "AWS_SECRET_ACCESS_KEY=" + bucket.SecretKey,
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + s.collected(), "OTEL_EXPORTER_OTLP_HEADERS=authorization=" + canaries["the collector's token"],
	}

	// All is well, with a key file and with a passphrase.
	all := func(name string, db, remote, store string, env ...string) {
		s.database(db)
		at := []string{"--db", db, "--remote", remote, "--store", store}
		// A row that the server refuses for ever, and a second version of one.
		s.sql(db, `INSERT INTO diary (text, n) VALUES (CAST(x'ff' AS TEXT) || '`+rowCanaries["a row's text"]+`', 1)`)
		for _, c := range []string{"sync -v", "sync --json", "status", "status --json", "trace", "trace --json", "doctor", "devices", "failed", "topology --db " + db} {
			words := strings.Fields(c)
			args := words
			switch words[0] {
			case "status", "trace", "failed":
				args = slices.Concat(words, []string{"--db", db})
			case "topology":
			default:
				args = slices.Concat(words, at)
			}
			s.run(name+": "+c, run{args: args, env: env})
		}
		for _, c := range []string{"verify", "snapshots", "restore --db new-" + db} {
			s.run(name+": "+c, run{args: append(strings.Fields(c), "--store", store), env: env})
		}
	}
	all("all is well", "a.db", remote, store, "TIDEMARK_KEY_FILE="+key)
	all("with a passphrase", "p.db", remote+"/of/pass", strings.Replace(store, "/alice?", "/pass?", 1), "TIDEMARK_PASSPHRASE="+canaries["the passphrase"])
	s.scrape(t, run{args: []string{"run", "-v", "--metrics", "127.0.0.1:0", "--db", "a.db", "--remote", remote, "--store", store, "--key-file", key}})

	misplaced, token := canaries["a secret put anywhere"], canaries["the S3 session token"]
	s3Env := []string{"AWS_ACCESS_KEY_ID=AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY=" + canaries["the S3 secret key"], "AWS_SESSION_TOKEN=" + token}
	s.database("f.db")
	local := "file://" + filepath.Join(s.dir, "remote")
	here := "file://" + filepath.Join(s.dir, "store")
	with := func(args ...string) []string { return append(args, "--db", "f.db") }
	const xml = `<?xml version="1.0"?><Error><Code>%s</Code><Message>you said %%s</Message></Error>`
	failures := map[string]run{
		"wrong key file":   {args: []string{"verify", "--store", store, "--key-file", otherKey}, want: "none of the keys opens it"},
		"wrong passphrase": {args: []string{"verify", "--store", strings.Replace(store, "/alice?", "/pass?", 1)}, env: []string{"TIDEMARK_PASSPHRASE=" + misplaced}, want: "it was encrypted with another passphrase"},
		"short passphrase": {args: []string{"verify", "--store", store}, env: []string{"TIDEMARK_PASSPHRASE=cAnArY"}, want: "the passphrase is shorter"},
		"no key":           {args: []string{"verify", "--store", store}, want: "encrypted"},
		"refused S3 keys":  {args: []string{"verify", "--store", store}, env: s3Env, want: "unauthorized"},
		"S3 is down":       {args: []string{"verify", "--store", "s3://bucket/alice?region=us-east-1&endpoint=http://127.0.0.1:1"}, env: s3Env, want: "connection refused"},
		"S3 quotes, 403":   {args: with("sync", "-v", "--remote", local, "--store", s.quotingS3(403, fmt.Sprintf(xml, "SignatureDoesNotMatch"))), env: s3Env, want: "SignatureDoesNotMatch: you said"},
		"S3 quotes, 400":   {args: with("doctor", "--remote", local, "--store", s.quotingS3(400, fmt.Sprintf(xml, "AuthorizationHeaderMalformed"))), env: s3Env, want: "AuthorizationHeaderMalformed: you said"},
		"S3 quotes, 301":   {args: []string{"snapshots", "--store", s.quotingS3(301, fmt.Sprintf(xml, "PermanentRedirect"))}, env: s3Env, want: "PermanentRedirect: you said"},
		"S3 is no S3":      {args: []string{"verify", "--store", s.quotingS3(200, `not XML: %s`)}, env: s3Env, want: "the manifest is not readable"},
		"S3 breaks off":    {args: []string{"verify", "--store", s.quotingS3(403, `<Error><Code>%s`)}, env: s3Env, want: "XML syntax error"},

		"Firestore is down":            {args: with("doctor", "--remote", remote, "--store", here), env: []string{"FIRESTORE_EMULATOR_HOST=alice:" + misplaced + "@127.0.0.1:1"}, want: "unavailable"},
		"Firestore quotes, invalid":    {args: with("sync", "-v", "--remote", remote, "--store", here), env: s.quotingFirestore(codes.InvalidArgument, false), want: "InvalidArgument"},
		"Firestore quotes, denied":     {args: with("sync", "-v", "--remote", remote, "--store", here), env: s.quotingFirestore(codes.PermissionDenied, false), want: "PermissionDenied"},
		"Firestore quotes, anonymous":  {args: with("doctor", "--remote", remote, "--store", here), env: s.quotingFirestore(codes.Unauthenticated, true), want: "unauthorized"},
		"Firestore quotes, not there":  {args: with("sync", "--json", "--remote", remote, "--store", here), env: s.quotingFirestore(codes.NotFound, false), want: "cycle"},
		"Firestore quotes, conflict":   {args: with("sync", "-v", "--remote", remote, "--store", here), env: s.quotingFirestore(codes.AlreadyExists, false), want: "check devices"},
		"Firestore quotes, bug":        {args: with("sync", "-v", "--remote", remote, "--store", here), env: s.quotingFirestore(codes.DataLoss, false), want: "DataLoss"},
		"Firestore without a key":      {args: with("sync", "--remote", remote, "--store", here), env: []string{"FIRESTORE_EMULATOR_HOST="}, want: "unauthorized"},
		"the key itself in GOOGLE_…":   {args: with("sync", "--remote", remote, "--store", here), env: []string{"FIRESTORE_EMULATOR_HOST=", `GOOGLE_APPLICATION_CREDENTIALS={"type":"service_account","private_key":"` + canaries["the private key"] + `","refresh_token":"` + misplaced + `"}`}, want: "unauthorized"},
		"a key file of Google's, torn": {args: with("sync", "--remote", remote, "--store", here), env: []string{"FIRESTORE_EMULATOR_HOST=", "GOOGLE_APPLICATION_CREDENTIALS=" + s.write("torn.json", `{"type":"service_account","private_key":"`+canaries["the private key"])}, want: "unexpected end of JSON"},
		"a key of Google's, no PEM":    {args: with("sync", "--remote", remote, "--store", here), env: []string{"FIRESTORE_EMULATOR_HOST=", "GOOGLE_APPLICATION_CREDENTIALS=" + s.write("nopem.json", `{"type":"service_account","client_email":"a@b.c","token_uri":"http://127.0.0.1:1","private_key":"`+canaries["the private key"]+`"}`)}, want: "private key"},

		"a password in S3's URL":       {args: []string{"verify", "--store", "s3://AKIA:" + misplaced + "@bucket/alice"}, want: "it has a user or a password in it"},
		"a secret as a parameter":      {args: []string{"verify", "--store", "s3://bucket/alice?secret_access_key=" + misplaced}, want: "looks like a secret"},
		"a password in the endpoint":   {args: []string{"verify", "--store", "s3://bucket/alice?endpoint=http://u:" + misplaced + "@127.0.0.1:1"}, want: "its endpoint has to look like"},
		"a password in the remote":     {args: with("sync", "--remote", "firestore://alice:"+misplaced+"@p/users/alice", "--store", here), want: "it has a user or a password in it"},
		"a password in TIDEMARK_STORE": {args: []string{"verify"}, env: []string{"TIDEMARK_STORE=s3://" + misplaced + ":" + misplaced + "@b/a?x=" + misplaced}, want: "TIDEMARK_STORE is no URL that works"},
		"AWS_ENDPOINT_URL":             {args: []string{"verify", "--store", "s3://bucket/alice?region=us-east-1"}, env: append([]string{"AWS_ENDPOINT_URL=http://alice:" + misplaced + "@127.0.0.1:1"}, s3Env...), want: "connection refused"},
		"a proxy that is down":         {args: []string{"verify", "--store", "s3://bucket/alice?region=us-east-1"}, env: append([]string{"HTTPS_PROXY=http://alice:" + canaries["the proxy's password"] + "@127.0.0.1:1"}, s3Env...), want: "proxyconnect"},
		"AWS's file, torn":             {args: []string{"verify", "--store", "s3://bucket/alice?region=us-east-1"}, env: []string{"AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=", "AWS_SHARED_CREDENTIALS_FILE=" + s.write("aws", "[default\naws_secret_access_key "+misplaced+"\n["+misplaced)}, want: "unauthorized"},
		"AWS's container":              {args: []string{"verify", "--store", "s3://bucket/alice?region=us-east-1"}, env: []string{"AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=", "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:1/", "AWS_CONTAINER_AUTHORIZATION_TOKEN=" + misplaced + "\n"}, want: "invalid newline"},
		"the key as --key-file":        {args: []string{"verify", "--store", store, "--key-file", "AGE-SECRET-KEY-" + hunted["the identity"]}, want: "and not the key itself"},
		"the key as TIDEMARK_KEY_FILE": {args: []string{"verify", "--store", store}, env: []string{"TIDEMARK_KEY_FILE=" + file}, want: "and not the key itself"},
		"a key file that is none":      {args: []string{"verify", "--store", store, "--key-file", s.write("bad.txt", "AGE-SECRET-KEY-1"+misplaced)}, want: "bad.txt is no key file"},
		"settings: unknown":            {args: []string{"verify", "--config", s.write("c1.yaml", "passphrase: "+misplaced+"\n")}, want: "there is no setting"},
		"settings: twice":              {args: []string{"verify", "--config", s.write("c2.yaml", "store: a\nstore: "+misplaced+"\n")}, want: "is there twice"},
		"settings: the key":            {args: []string{"verify", "--store", store, "--config", s.write("c3.yaml", "key-file: AGE-SECRET-KEY-"+hunted["the identity"]+"\n")}, want: "and not the key itself"},
		"settings: as a recipient":     {args: []string{"verify", "--store", store, "--config", s.write("c4.yaml", "recipients: AGE-SECRET-KEY-"+hunted["the identity"]+"\n")}, want: "a recipient is not one"},
		"settings: no YAML":            {args: []string{"verify", "--config", s.write("c5.yaml", "store: \""+misplaced+"\n  x: [")}, want: "not valid YAML"},
		"settings: in a list":          {args: []string{"verify", "--config", s.write("c6.yaml", "store: ["+misplaced+"]\n")}, want: "needs one value"},
		"settings: a bucket's":         {args: []string{"verify", "--config", s.write("c7.yaml", "store: s3://a:"+misplaced+"@b/c\n")}, want: "it has a user or a password in it"},
		"a passphrase as a flag":       {args: []string{"verify", "--passphrase", misplaced}, want: "there is no flag"},
		"a flag with a value":          {args: []string{"verify", "--passphrase=" + misplaced}, want: "there is no flag"},
		"a secret as a command":        {args: []string{misplaced}, want: "there is no such command"},
		"a secret as an argument":      {args: []string{"verify", misplaced}, want: "takes flags only"},
		"a secret as a time":           {args: with("run", "--every", misplaced), want: "the value of --every"},
		"no collector":                 {args: with("sync", "--remote", local, "--store", s.quotingS3(403, "%s")), env: append([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://u:" + misplaced + "@127.0.0.1:1"}, s3Env...), want: "the collector of traces does not take them"},
		"a collector's bad header":     {args: with("sync", "--remote", local, "--store", s.quotingS3(403, "%s")), env: append([]string{"OTEL_EXPORTER_OTLP_HEADERS=authorization=" + misplaced + "%zz,=" + misplaced}, s3Env...), want: "unauthorized"},
	}
	limit := make(chan struct{}, 4)
	var wg sync.WaitGroup
	for name, r := range failures {
		wg.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			dir := name // each with a database of its own
			for i, a := range r.args {
				if a == "f.db" {
					copied := strings.NewReplacer(" ", "-", ":", "", ",", "").Replace(dir) + ".db"
					s.copy("f.db", copied)
					r.args[i] = copied
				}
			}
			s.run(name, r)
		})
	}
	wg.Wait()
	for db := range s.databases() { // what the failures left in the ledger and the letters
		s.run("status of "+db, run{args: []string{"status", "--json", "--db", db}})
		s.run("trace of "+db, run{args: []string{"trace", "--json", "--db", db}})
		s.keep("the books of "+db, s.books(db))
	}
	s.objects(bucket)
	s.files(hunted)

	if spans := s.seen["spans"]; !bytes.Contains(spans, []byte("upload")) {
		t.Error("no spans arrived")
	}
	for _, where := range slices.Sorted(maps.Keys(s.seen)) {
		s.hunt(where, s.seen[where], hunted)
		s.hunt(where, s.seen[where], rowCanaries)
	}
}

// hunt fails when a canary is there. It shows where, and not what is beside it.
func (s *secrets) hunt(where string, what []byte, canaries map[string]string) {
	for name, c := range canaries {
		if at := bytes.Index(what, []byte(c)); at >= 0 {
			s.t.Errorf("%s shows %s: …%s…", where, name, what[max(0, at-200):min(len(what), at+len(c)+50)])
		}
	}
}

func (s *secrets) copy(from, to string) {
	raw, err := os.ReadFile(filepath.Join(s.dir, from))
	if err != nil {
		s.t.Error(err)
	}
	s.write(to, string(raw))
}

// scrape keeps the metrics of a run and its log.
func (s *secrets) scrape(t *testing.T, r run) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "scraped", append([]string{"in step", "pipeline"}, r.args...)...)
	cmd.Dir = s.dir
	cmd.Env = append(cmd.Environ(), s.env...)
	out, err := cmd.CombinedOutput()
	if !bytes.Contains(out, []byte("tidemark_")) {
		t.Errorf("no metrics: %v\n%s", err, out)
	}
	s.keep("metrics", out)
}

func (s *secrets) databases() map[string]bool {
	found, err := filepath.Glob(filepath.Join(s.dir, "*.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range found {
		names[filepath.Base(f)] = true
	}
	return names
}

// books are what the database says about itself: all of our tables' texts, without the
// payloads that are rows.
func (s *secrets) books(name string) []byte {
	db, err := openTest(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	var out bytes.Buffer
	for _, q := range []string{
		`SELECT * FROM tidemark_ledger`, `SELECT * FROM tidemark_state`, `SELECT handler, tableName, documentId, class, reason, topic, cycle, metadata, traceparent, iif(documentId = '', payload, NULL) FROM tidemark_dead_letters`,
		`SELECT tableName, reason FROM tidemark_inbox`, `SELECT tableName, winner, reason FROM tidemark_conflicts`,
	} {
		if err := dump(s.t.Context(), db, q, &out); err != nil {
			s.t.Errorf("%s: %s: %v", name, q, err)
		}
	}
	return out.Bytes()
}

func dump(ctx context.Context, db *sql.DB, query string, w io.Writer) (err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Err(), rows.Close()) }()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	for rows.Next() {
		values, to := make([]sql.RawBytes, len(columns)), make([]any, len(columns))
		for i := range values {
			to[i] = &values[i]
		}
		if err := rows.Scan(to...); err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\n", values)
	}
	return nil
}

// objects keeps what lies in the bucket, as it lies there.
func (s *secrets) objects(b servers.S3Server) {
	store, err := s3.Open(s.t.Context(), s3.Config{Bucket: b.Bucket, Region: b.Region, Endpoint: b.Endpoint},
		config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(b.AccessKey, b.SecretKey, "")))
	if err != nil {
		s.t.Fatal(err)
	}
	list, err := store.List(s.t.Context(), "")
	if err != nil || len(list) < 4 {
		s.t.Fatalf("%d objects: %v", len(list), err)
	}
	for _, o := range list {
		body, _, err := store.Get(s.t.Context(), o.Key, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		raw, err := io.ReadAll(body)
		if err = errors.Join(err, body.Close()); err != nil {
			s.t.Fatal(err)
		}
		s.keep("object "+o.Key, raw)
	}
}

// files looks into every file of the folder: databases and the local remote may hold
// rows, and only what this test wrote itself secrets.
func (s *secrets) files(hunted map[string]string) {
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := filepath.Base(path)
		switch {
		case slices.Contains([]string{".txt", ".yaml", ".json", ""}, filepath.Ext(name)):
		case strings.Contains(name, ".db-") || strings.HasSuffix(name, ".db") || strings.Contains(name, ".sqlite"):
			s.hunt(name, raw, hunted)
		default:
			s.keep(name, raw)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}
