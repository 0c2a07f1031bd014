package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark/adapters/firestore"
)

func (a *app) firestoreConfig() *cobra.Command {
	return a.takes(&cobra.Command{
		Use:   "firestore-config [--remote 'firestore://PROJECT/users/{uid}']",
		Short: "print the security rules for signed-in users",
		Long: `firestore-config prints firestore.rules: what a signed-in user may do. {uid} in
the remote's scope stands for the user's id; where it is missing it takes the
place of the last name: firestore://my-project/users/alice gives the rules for
users/{uid}.

A user reaches the own scope alone. There, only what a device does is allowed: a
device's record moves one number at a time, and is deleted only when the owner
has everything forgotten; a document comes with its device's record in the same
commit, with our fields and the server's time; what leaves the server has been
deleted before, or is forgotten.

Put the file where your firebase.json says ("firestore": {"rules":
"firestore.rules"}) and deploy it with firebase deploy --only firestore:rules.
It asks no server and costs nothing.

A user's device signs in with TIDEMARK_FIREBASE_TOKEN_FILE, the name of a file
of mode 0600 with the user's refresh token, and TIDEMARK_FIREBASE_API_KEY, the
project's web API key. Without the file the user is signed out.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.settings(cmd)
			if err == nil {
				err = s.need("remote")
			}
			if err != nil {
				return err
			}
			u, err := parseRemote(s.remote)
			if err != nil {
				return err
			}
			if u.scheme != "firestore" {
				return s.remote.wrong("security rules are for Firestore", remoteForms)
			}
			scope := u.path
			if !strings.Contains(scope, firestore.UserID) {
				scope = scope[:strings.LastIndexByte(scope, '/')+1] + firestore.UserID
				fmt.Fprintf(a.err, "The scope %s is taken for %s.\n", plain(u.path), plain(scope))
			}
			rules, err := firestore.Rules(scope)
			if err != nil {
				return usageError{err}
			}
			a.out.printf("%s", rules)
			return nil
		},
	}, "remote")
}
