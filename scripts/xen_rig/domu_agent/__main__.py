from scripts.xen_rig.domu_agent.agent import main

main()
