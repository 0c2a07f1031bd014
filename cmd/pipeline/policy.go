package main

import (
	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark/adapters/s3"
)

func (a *app) policy() *cobra.Command {
	var operator bool
	cmd := a.takes(&cobra.Command{
		Use:   "s3-policy DOCUMENT --store URL",
		Short: "print the least rights and the bucket settings that S3 needs",
		Long: `s3-policy prints a JSON document for the bucket and the folder of a store's URL.
It asks nobody. The documents are

  iam            the least rights of a device on its folder, or of a backend
                 that signs for it: a role's policy, or the session policy that
                 a backend passes to STS
  bucket         the bucket's policy: nobody without TLS
  public-access  the bucket's public access block: nobody without an account
  lifecycle      the bucket's lifecycle rule: uploads in parts that nobody will
                 finish are aborted after a week

  pipeline s3-policy bucket > bucket.json
  aws s3api put-bucket-policy --bucket B --policy file://bucket.json
  pipeline s3-policy public-access > block.json
  aws s3api put-public-access-block --bucket B \
      --public-access-block-configuration file://block.json
  pipeline s3-policy lifecycle > lifecycle.json
  aws s3api put-bucket-lifecycle-configuration --bucket B \
      --lifecycle-configuration file://lifecycle.json
  pipeline s3-policy iam > iam.json
  aws iam put-role-policy --role-name R --policy-name tidemark \
      --policy-document file://iam.json

A bucket has one policy and one lifecycle configuration: where there is one
already, add the rule to it.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return misuse("s3-policy takes one document: iam, bucket, public-access or lifecycle")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.settings(cmd)
			if err == nil {
				err = s.need("store")
			}
			if err != nil {
				return err
			}
			u, err := parseStore(s.store)
			if err != nil {
				return err
			}
			if u.scheme != "s3" {
				return misuse("a folder has no policies: name a store like s3://BUCKET/PREFIX")
			}
			switch args[0] {
			case "iam":
				p, err := s3.DevicePolicy(u.authority, u.path, operator)
				if err != nil {
					return opening(err)
				}
				return a.out.json(p)
			case "bucket":
				return a.out.json(s3.TLSOnlyPolicy(u.authority))
			case "public-access":
				return a.out.json(s3.NoPublicAccess())
			case "lifecycle":
				return a.out.json(s3.AbortUploadsRule())
			}
			return misuse("there is no such document: it is iam, bucket, public-access or lifecycle")
		},
	}, "store")
	cmd.Flags().BoolVar(&operator, "operator", false, "iam: also see everybody's unfinished uploads and the bucket's lifecycle rules")
	return cmd
}
